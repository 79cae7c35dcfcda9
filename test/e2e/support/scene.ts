import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { inject, onTestFinished } from 'vitest'
import { makeCertificate } from './make-certificate.ts'
import { type Mirror, startMirror } from './mirror.ts'
import { type NetworkNamespace, addNetworkNamespace } from './network-namespace.ts'
import { run } from './run.ts'
import { type Upstream, startUpstream } from './upstream.ts'
import { type Content, writeContent } from './write-content.ts'

/** Where the scene's mirror answers. */
export const mirrorAddress = '127.0.0.1:5055'

/** Where its registry to push to answers, in a scene that has one. */
export const registryAddress = '127.0.0.1:5001'

/** A network with a mirror in it and an upstream that only the mirror knows. */
export interface Scene {
  /** For whatever the test writes; gone at the end. */
  folder: string
  namespace: NetworkNamespace
  upstream: Upstream
  mirror: Mirror
}

export interface SceneOptions {
  content: Content
  /** Registries that the upstream stands for. */
  registries: readonly string[]
  /** Docker networks the mirror looks for. */
  networks?: readonly string[]
  /** Whether the mirror runs its registry to push to; it does not when not given. */
  registry?: boolean
  /** The names in its certificate: it speaks TLS, also at the stage's address. It does not when not given. */
  tls?: readonly string[]
  /** The environment of the mirror, given the scene's folder. */
  env?: (folder: string) => NodeJS.ProcessEnv
}

/** A network with an upstream, and nothing else yet. */
export type Stage = Omit<Scene, 'mirror'>

export interface StageOptions {
  content: Content
  /** Where the upstream listens; 127.0.0.1 when not given, which containers cannot reach. */
  upstreamAddress?: string
}

/** An address of the stage that its containers reach. */
export const stageAddress = '10.200.0.1'

/** Sets a stage that is taken down when the test ends. */
export async function setStage({ content, upstreamAddress }: StageOptions): Promise<Stage> {
  const { prefix } = inject('e2e')
  // Short: a socket's path has 107 bytes.
  const folder = await mkdtemp(join(tmpdir(), prefix))
  // What is registered last is taken down first, whichever way the test ends.
  onTestFinished(() => rm(folder, { recursive: true, force: true, maxRetries: 5 }))
  const namespace = await addNetworkNamespace(basename(folder))
  onTestFinished(() => namespace.remove())
  const [file, ...args] = namespace.enter(['ip', 'address', 'add', `${stageAddress}/32`, 'dev', 'lo'])
  await run(file!, args)

  const contentFolder = join(folder, 'content')
  await writeContent(contentFolder, content)
  const upstream = await startUpstream(namespace, contentFolder, upstreamAddress)
  onTestFinished(() => upstream.close())
  return { folder, namespace, upstream }
}

/** Builds a scene that is taken down when the test ends. Tags are never fresh in it: the mirror asks for them again each time. */
export async function startScene(options: SceneOptions): Promise<Scene> {
  const { folder, namespace, upstream } = await setStage({ content: options.content })

  const home = join(folder, 'mirror')
  await mkdir(home)
  const upstreamConfig = { url: upstream.url, credentials: 'anonymous' }
  const tls = options.tls && (await makeCertificate(home, options.tls))
  const mirror = await startMirror({
    home,
    config: {
      cache: { listen: [mirrorAddress, ...(tls ? [`${stageAddress}:5055`] : [])], tagFreshness: '0s' },
      ...(tls && { tls }),
      registry: { enabled: options.registry ?? false, listen: [registryAddress] },
      networks: options.networks ?? [],
      upstreams: Object.fromEntries(options.registries.map((registry) => [registry, upstreamConfig])),
    },
    ...(options.env && { env: options.env(folder) }),
    enter: namespace.enter,
  })
  onTestFinished(async ({ task }) => {
    await mirror.stop()
    if (task.result?.state === 'fail') console.error(`The mirror's log:\n${await readFile(mirror.logFile, 'utf8')}`)
  })
  return { folder, namespace, upstream, mirror }
}
