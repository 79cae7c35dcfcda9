import { access, readFile } from 'node:fs/promises'
import { Agent } from 'node:http'
import { isIP } from 'node:net'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import type Dockerode from 'dockerode'
import { codeOf, exitCode, isConnectionFailure, MirrorError } from '../lib/errors.ts'
import { ownFailureCode } from '../lib/system-errors.ts'
import type { Clock } from '../lib/time.ts'
import { SshConnection } from './connection.ts'
import type { DockerEndpoint } from './endpoint.ts'
import { type Docker, type DockerEngine, type DockerEngineInfo, DockerError } from './engine.ts'

interface DockerodeOptions {
  clock: Clock
  /** How long to wait for an engine that is not there before looking again; ms. */
  retryMs?: number
}

/** The Docker engine behind an endpoint. It need not be there: then it has no networks, and is looked for again. */
export function createDockerodeDocker(endpoint: DockerEndpoint, { clock, retryMs = 5000 }: DockerodeOptions): Docker {
  let client: Dockerode | undefined

  /** Loads the library once there is something to talk to. */
  async function connect(): Promise<Dockerode> {
    if (endpoint.kind === 'socket') await access(endpoint.path)
    client ??= await openClient(endpoint)
    return client
  }

  return {
    async ping() {
      const answer = await undefinedIfUnavailable(async () => (await connect()).ping())
      return answer !== undefined
    },

    async networkGateways(name) {
      const filters = { name: [name], driver: ['bridge'] }
      const networks = await undefinedIfUnavailable(async () => (await connect()).listNetworks({ filters }))
      const addresses = networks
        // The engine's filter matches parts of names.
        ?.filter((network) => network.Name === name)
        .flatMap((network) => network.IPAM?.Config ?? [])
        // Older engines write an IPv6 gateway with its prefix length.
        .map(({ Gateway }) => (Gateway ?? '').replace(/\/\d+$/, ''))
        .filter((address) => isIP(address) !== 0)
      return addresses && [...new Set(addresses)]
    },

    async watchNetworks(onChange, signal) {
      let seen: boolean | undefined
      while (!signal.aborted) {
        const present = await orUnasked(async () => {
          const events = await (await connect()).getEvents({ filters: { type: ['network'] }, abortSignal: signal })
          // Subscribed first, looked at afterwards: nothing that happens in between is missed.
          seen = true
          onChange()
          await untilEnd(events, onChange, signal)
          return true
        })
        if (signal.aborted) return
        if (present === undefined && seen !== false) {
          seen = false
          onChange()
        }
        await clock.sleep(retryMs, signal).catch(() => {})
      }
    },
  }
}

/** As long as Node's own agent keeps a connection that nobody uses. */
const idleMs = 5000

/** Loads the library, here and nowhere else. */
export const loadDockerode = async () => (await import('dockerode')).default

/** Opens a client of the engine at an endpoint. */
export async function openClient(endpoint: DockerEndpoint): Promise<Dockerode> {
  const Dockerode = await loadDockerode()
  if (endpoint.kind === 'socket') return new Dockerode({ socketPath: endpoint.path })
  if (endpoint.kind === 'ssh') {
    // Kept alive, for logging in costs more than a request; one that is idle keeps no command from ending.
    const kept = new Agent({ keepAlive: true, timeout: idleMs })
    const agent = Object.assign(kept, { createConnection: () => new SshConnection(endpoint) })
    const options = { host: 'docker', port: 80, protocol: 'http' as const, agent }
    return new Dockerode(options)
  }
  const { host, port, tlsFolder } = endpoint
  if (tlsFolder === undefined) return new Dockerode({ host, port, protocol: 'http' })
  const [ca, cert, key] = await Promise.all(
    ['ca.pem', 'cert.pem', 'key.pem'].map((file) => readFile(join(tlsFolder, file))),
  )
  return new Dockerode({ host, port, protocol: 'https', ca, cert, key })
}

/** Each event calls back; resolves when the engine goes away or the signal aborts. */
async function untilEnd(events: NodeJS.ReadableStream, onEvent: () => void, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const stop = () => {
      signal.removeEventListener('abort', stop)
      if ('destroy' in events && typeof events.destroy === 'function') events.destroy()
      resolve()
    }
    events.on('data', onEvent)
    for (const end of ['end', 'close', 'error']) events.once(end, stop)
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
  })
}

/**
 * An engine that is not there, or does not let us in, or is just going down, is a normal state. Throws what keeps this process
 * from asking (no file descriptor, no memory), which says nothing of the engine.
 */
async function undefinedIfUnavailable<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (ownFailureCode(error) !== undefined) throw error
    if (isConnectionFailure(error)) return undefined
    // The engine's own refusals, and our own wish to end.
    if (error instanceof Error && ('statusCode' in error || error.name === 'AbortError')) return undefined
    throw error
  }
}

/** The same where it is tried again in any case. */
async function orUnasked<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await undefinedIfUnavailable(ask)
  } catch (error) {
    if (ownFailureCode(error) === undefined) throw error
    return undefined
  }
}

/** What the engine refuses, as a DockerError; an engine that is gone, as a MirrorError (exit 4); anything else as it is. */
export async function translateErrors<T>(ask: Promise<T>): Promise<T> {
  try {
    return await ask
  } catch (error) {
    throw toDockerError(error)
  }
}

/** The same where what is asked for need not be there: undefined then. */
export async function orUndefinedIf404<T>(ask: Promise<T>): Promise<T | undefined> {
  try {
    return await translateErrors(ask)
  } catch (error) {
    if (error instanceof DockerError && error.status === 404) return undefined
    throw error
  }
}

/** The same for an answer that comes bit by bit. */
export async function* translateStreamErrors<T>(answer: AsyncIterable<T>): AsyncGenerator<T> {
  try {
    yield* answer
  } catch (error) {
    throw toDockerError(error)
  }
}

function toDockerError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  if (lost.has(codeOf(error) ?? ''))
    return new MirrorError(`The Docker engine has stopped answering: ${error.message}.`, {
      exit: exitCode.missing,
      hints: ['docker info   (says what is wrong)'],
      cause: error,
    })
  if (!('statusCode' in error) || typeof error.statusCode !== 'number') return error
  const said = 'json' in error ? messageOf(error.json) : undefined
  const message = (said ?? error.message).trim().replace(/\.$/, '')
  // podman says 500 where Docker says that something is in conflict.
  const status = /already (in use|exists|used)|container state improper/.test(message) ? 409 : error.statusCode
  return new DockerError(status, message, { cause: error })
}

const lost = new Set(['ECONNREFUSED', 'ECONNRESET', 'ENOENT', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENETUNREACH'])

function messageOf(value: unknown): string | undefined {
  return typeof value === 'object' && value !== null && 'message' in value && typeof value.message === 'string'
    ? value.message
    : undefined
}

/** A local engine answers in milliseconds, one in a virtual machine that wakes up in a second or two. */
const answerMs = 5000

/** The engine behind an endpoint, by its API. https://docs.docker.com/reference/api/engine/ */
export function createDockerodeEngine(endpoint: DockerEndpoint): DockerEngine {
  return {
    async info() {
      const abortSignal = AbortSignal.timeout(answerMs)
      return undefinedIfUnavailable(async () => {
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
      await undefinedIfUnavailable(async () => client.getImage(image).remove({ abortSignal }))
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
