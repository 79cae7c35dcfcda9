import { access } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { isConnectionFailure } from '../lib/errors.ts'
import { orAbsent, openClient } from '../docker/dockerode.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'
import type { DockerEngine, DockerEngineInfo } from './docker-engine.ts'

/** A local engine answers in milliseconds, one in a virtual machine that wakes up in a second or two. */
const answerMs = 5000

/** The engine behind an endpoint, by its API. https://docs.docker.com/reference/api/engine/ */
export function createDockerodeEngine(endpoint: DockerEndpoint): DockerEngine {
  return {
    async info() {
      const abortSignal = AbortSignal.timeout(answerMs)
      return orAbsent(async () => {
        // The library takes half a second to load: not for an engine that is not there.
        if (endpoint.kind === 'socket') await access(endpoint.path)
        const client = (await openClient(endpoint)) as unknown as AbortableClient
        const [info, version] = await Promise.all([client.info({ abortSignal }), client.version({ abortSignal })])
        return readInfo(info, version)
      })
    },

    async tryPull(image, timeoutMs) {
      const client = await openClient(endpoint)
      const limit = AbortSignal.timeout(timeoutMs)
      const failed = await pull(client, image, limit).catch((error: unknown) => {
        if (limit.aborted) return `the pull took longer than ${timeoutMs / 1000} s`
        if (error instanceof Error && ('statusCode' in error || isConnectionFailure(error))) return error.message
        throw error
      })
      const abortSignal = AbortSignal.timeout(answerMs)
      await orAbsent(async () => client.getImage(image).remove({ abortSignal }))
      return { failed }
    },
  }
}

/** As the library is; its types leave the signals out. */
interface AbortableClient {
  info(options: { abortSignal: AbortSignal }): Promise<EngineInfo>
  version(options: { abortSignal: AbortSignal }): Promise<EngineVersion>
}

interface EngineInfo {
  readonly ServerVersion?: string
  readonly OperatingSystem?: string
  readonly Name?: string
  readonly DriverStatus?: readonly (readonly [string, string])[] | null
  readonly SecurityOptions?: readonly string[] | null
  readonly RegistryConfig?: {
    readonly Mirrors?: readonly string[] | null
    readonly InsecureRegistryCIDRs?: readonly string[] | null
    readonly IndexConfigs?: Readonly<Record<string, { readonly Secure?: boolean }>> | null
  } | null
}

interface EngineVersion {
  readonly Version?: string
  readonly Components?: readonly { readonly Name?: string }[] | null
}

function readInfo(info: EngineInfo, version: EngineVersion): DockerEngineInfo {
  const { Mirrors, InsecureRegistryCIDRs, IndexConfigs } = info.RegistryConfig ?? {}
  const insecure = Object.entries(IndexConfigs ?? {}).filter(([, { Secure }]) => Secure === false)
  return {
    version: info.ServerVersion ?? version.Version ?? '',
    operatingSystem: info.OperatingSystem ?? '',
    hostName: info.Name ?? '',
    imageStore: (info.DriverStatus ?? []).some(([, value]) => value.startsWith('io.containerd.snapshotter.'))
      ? 'containerd'
      : 'classic',
    isRootless: (info.SecurityOptions ?? []).some((option) => option.split(',').includes('name=rootless')),
    isPodman: (version.Components ?? []).some(({ Name }) => Name === 'Podman Engine'),
    mirrors: Mirrors ?? [],
    insecure: [...(InsecureRegistryCIDRs ?? []), ...insecure.map(([host]) => host)],
  }
}

/** What went wrong; undefined when nothing did. The engine tells of it within an answer that began as a success. */
async function pull(
  client: Awaited<ReturnType<typeof openClient>>,
  image: string,
  abortSignal: AbortSignal,
): Promise<string | undefined> {
  const progress = (await client.pull(image, { abortSignal })) as Readable
  let line = ''
  let failed: string | undefined
  for await (const chunk of progress.setEncoding('utf8')) {
    const lines = (line + chunk).split('\n')
    line = lines.pop()!
    for (const said of lines) failed ??= errorIn(said)
  }
  return failed ?? errorIn(line)
}

function errorIn(line: string): string | undefined {
  if (line.trim() === '') return undefined
  const { error } = JSON.parse(line) as { error?: string }
  return error
}
