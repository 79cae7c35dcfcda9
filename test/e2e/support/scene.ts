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

/** mirrorAddress is the address of the cache in a scene's mirror. */
export const mirrorAddress = '127.0.0.1:5055'

/** registryAddress is the address of the push registry, in a scene that has one. */
export const registryAddress = '127.0.0.1:5001'

/** Scene is a network with a mirror and an upstream that only the mirror knows. */
export interface Scene {
  /** The folder of the test's files, deleted at its end. */
  folder: string
  namespace: NetworkNamespace
  upstream: Upstream
  mirror: Mirror
}

export interface SceneOptions {
  content: Content
  /** The registries that the upstream represents. */
  registries: readonly string[]
  /** The Docker networks on which the mirror listens. */
  networks?: readonly string[]
  /** True when the mirror runs its push registry; default: false. */
  registry?: boolean
  /** The names in the mirror's certificate, with which it speaks TLS, also at the stage's address; default: no TLS. */
  tls?: readonly string[]
  /** The environment of the mirror, given the scene's folder. */
  env?: (folder: string) => NodeJS.ProcessEnv
}

/** Stage is a network with an upstream, without a mirror. */
export type Stage = Omit<Scene, 'mirror'>

export interface StageOptions {
  content: Content
  /** The address of the upstream; default: 127.0.0.1, which containers cannot reach. */
  upstreamAddress?: string
}

/** stageAddress is an address of the stage that its containers reach. */
export const stageAddress = '10.200.0.1'

/** Sets up a stage until the test ends. */
export async function setStage({ content, upstreamAddress }: StageOptions): Promise<Stage> {
  const { prefix } = inject('e2e')
  // Keeps the path short, because the path of a socket has at most 107 bytes.
  const folder = await mkdtemp(join(tmpdir(), prefix))
  // Registers the cleanups in reverse order, because the last registered one runs first.
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

/** Starts a scene until the test ends. Its mirror asks the upstream for a tag each time, because tags are never fresh. */
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
