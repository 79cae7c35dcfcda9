import { readFile } from 'node:fs/promises'
import { Agent } from 'node:http'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import type Dockerode from 'dockerode'
import { getCode, exitCode, isConnectionFailure, MirrorError } from '../lib/errors.ts'
import { findProcessFaultCode } from '../lib/system-errors.ts'
import { SshConnection } from './connection.ts'
import type { DockerEndpoint } from './endpoint.ts'
import {
  type ContainerSpec,
  type ContainerState,
  DockerError,
  type DockerEngineInfo,
  toImageArchitecture,
  type PublishedPort,
} from './engine.ts'

/** Keeps an unused connection as long as Node's default agent does, ms. */
const idleMs = 5000

/** Loads the library; no other file does. */
export const loadDockerode = async () => (await import('dockerode')).default

/** Creates a client of the engine at an endpoint. */
export async function createDockerClient(endpoint: DockerEndpoint): Promise<Dockerode> {
  const Dockerode = await loadDockerode()
  if (endpoint.kind === 'socket') return new Dockerode({ socketPath: endpoint.path })
  if (endpoint.kind === 'ssh') {
    // Keeps connections alive, because a login costs more than a request. An idle one does not keep a command from ending.
    const keepAliveAgent = new Agent({ keepAlive: true, timeout: idleMs })
    const agent = Object.assign(keepAliveAgent, { createConnection: () => new SshConnection(endpoint) })
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

/** Calls back for each event. Resolves when the engine goes away or the signal aborts. */
export async function awaitEventsEnd(
  events: NodeJS.ReadableStream,
  onEvent: () => void,
  signal: AbortSignal,
): Promise<void> {
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
 * Returns undefined when the engine is not there, refuses this user or is shutting down. Throws what keeps this process from
 * asking (no file descriptor, no memory), because that says nothing about the engine.
 */
export async function ignoreUnavailable<T>(call: () => Promise<T>): Promise<T | undefined> {
  try {
    return await call()
  } catch (error) {
    if (findProcessFaultCode(error) !== undefined) throw error
    if (isConnectionFailure(error)) return undefined
    // Covers refusals of the engine, and the caller's abort.
    if (error instanceof Error && ('statusCode' in error || error.name === 'AbortError')) return undefined
    throw error
  }
}

/** Returns undefined for failures of this process as well, for a caller that tries again in any case. */
export async function ignoreUnanswered<T>(call: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ignoreUnavailable(call)
  } catch (error) {
    if (findProcessFaultCode(error) === undefined) throw error
    return undefined
  }
}

/**
 * Translates errors: to a DockerError for what the engine refuses, to a MirrorError (exit 4) for an engine that does not answer.
 * Other errors stay as they are.
 */
export async function translateErrors<T>(call: Promise<T>): Promise<T> {
  try {
    return await call
  } catch (error) {
    throw toDockerError(error)
  }
}

/** Returns undefined for a DockerError 404. */
export async function orUndefinedIf404<T>(call: Promise<T>): Promise<T | undefined> {
  try {
    return await call
  } catch (error) {
    if (error instanceof DockerError && error.status === 404) return undefined
    throw error
  }
}

/** Translates the errors of a streamed answer. */
async function* translateStreamErrors<T>(answer: AsyncIterable<T>): AsyncGenerator<T> {
  try {
    yield* answer
  } catch (error) {
    throw toDockerError(error)
  }
}

function toDockerError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  if (connectionLostCodes.has(getCode(error) ?? ''))
    return new MirrorError(`The Docker engine has stopped answering: ${error.message}.`, {
      exit: exitCode.missing,
      hints: ['docker info   (shows the reason)'],
      cause: error,
    })
  if (!('statusCode' in error) || typeof error.statusCode !== 'number') return error
  const apiMessage = 'json' in error ? readMessage(error.json) : undefined
  const message = (apiMessage ?? error.message).trim().replace(/\.$/, '')
  // Recognizes conflicts by their text, because podman answers 500 for them.
  const status = /already (in use|exists|used)|container state improper/.test(message) ? 409 : error.statusCode
  return new DockerError(status, message, { cause: error })
}

const connectionLostCodes = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOENT',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
])

function readMessage(value: unknown): string | undefined {
  return typeof value === 'object' && value !== null && 'message' in value && typeof value.message === 'string'
    ? value.message
    : undefined
}

/** Reads the progress of an answer to its end: a JSON object a line. Returns the error that a line reports. */
export async function readProgress(answer: AsyncIterable<unknown>): Promise<string | undefined> {
  let rest = ''
  let failure: string | undefined
  for await (const chunk of answer) {
    const lines = (rest + String(chunk)).split('\n')
    rest = lines.pop()!
    for (const line of lines) failure = parseProgressError(line) ?? failure
  }
  return parseProgressError(rest) ?? failure
}

function parseProgressError(line: string): string | undefined {
  return line.includes('"error"') ? (JSON.parse(line) as { error?: string }).error : undefined
}

/** Waits for the end of a request whose progress the engine reports with status 200. Throws a DockerError for a reported error. */
export async function awaitProgress(answer: NodeJS.ReadableStream, signal?: AbortSignal): Promise<void> {
  const stop = () => (answer as Readable).destroy()
  signal?.addEventListener('abort', stop, { once: true })
  let failure: string | undefined
  try {
    failure = await readProgress(translateStreamErrors(answer))
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', stop)
  }
  signal?.throwIfAborted()
  if (failure !== undefined) throw new DockerError(500, failure)
}

/** Reads the engine's description of itself. The signal ends both requests. */
export async function readInfo(client: Dockerode, abortSignal?: AbortSignal): Promise<DockerEngineInfo> {
  const abortable = client as unknown as AbortableClient
  const options = { ...(abortSignal && { abortSignal }) }
  const [info, { Version, Components }] = await Promise.all([
    abortable.info(options),
    // Accepts a refusal by a proxy in front of the engine: this request only tells podman from Docker.
    abortable.version(options).catch((error: unknown): VersionAnswer => {
      if (error instanceof Error && 'statusCode' in error) return {}
      throw error
    }),
  ])
  const { Mirrors, InsecureRegistryCIDRs, IndexConfigs } = info.RegistryConfig ?? {}
  const insecure = Object.entries(IndexConfigs ?? {}).filter(([, { Secure }]) => Secure === false)
  return {
    version: info.ServerVersion ?? Version ?? '',
    operatingSystem: info.OperatingSystem ?? '',
    hostName: info.Name ?? '',
    architecture: toImageArchitecture(info.Architecture ?? ''),
    os: info.OSType ?? '',
    imageStore: (info.DriverStatus ?? []).some(([, value]) => value.startsWith('io.containerd.snapshotter.'))
      ? 'containerd'
      : 'classic',
    isRootless: (info.SecurityOptions ?? []).some((option) => /(^|=)rootless(,|$)/.test(option)),
    isPodman: (Components ?? []).some(({ Name }) => Name === 'Podman Engine'),
    logDriver: info.LoggingDriver ?? '',
    mirrors: Mirrors ?? [],
    insecure: [...(InsecureRegistryCIDRs ?? []), ...insecure.map(([host]) => host)],
  }
}

/** Methods of the library whose types leave the signals out. */
interface AbortableClient {
  info(options: { abortSignal?: AbortSignal }): Promise<InfoAnswer>
  version(options: { abortSignal?: AbortSignal }): Promise<VersionAnswer>
}

interface InfoAnswer {
  readonly ServerVersion?: string
  readonly OperatingSystem?: string
  readonly Name?: string
  readonly Architecture?: string
  readonly OSType?: string
  readonly LoggingDriver?: string
  readonly DriverStatus?: readonly (readonly [string, string])[] | null
  readonly SecurityOptions?: readonly string[] | null
  readonly RegistryConfig?: {
    readonly Mirrors?: readonly string[] | null
    readonly InsecureRegistryCIDRs?: readonly string[] | null
    readonly IndexConfigs?: Readonly<Record<string, { readonly Secure?: boolean }>> | null
  } | null
}

interface VersionAnswer {
  readonly Version?: string
  readonly Components?: readonly { readonly Name?: string }[] | null
}

/** Returns undefined for a DockerError 304: the container is in that state already. */
export async function ignoreNotModified<T>(call: Promise<T>): Promise<T | undefined> {
  try {
    return await call
  } catch (error) {
    if (error instanceof Error && 'status' in error && error.status === 304) return undefined
    throw error
  }
}

export function toCreateBody(spec: ContainerSpec): object {
  const { data, healthCheck } = spec
  const mount =
    'volume' in data.from
      ? { Type: 'volume', Source: data.from.volume, Target: data.at }
      : { Type: 'bind', Source: data.from.folder, Target: data.at }
  return {
    Image: spec.image,
    ...(spec.entrypoint && { Entrypoint: spec.entrypoint }),
    Cmd: spec.command,
    Env: Object.entries(spec.env).map(([name, value]) => `${name}=${value}`),
    User: spec.user,
    Labels: spec.labels,
    ExposedPorts: Object.fromEntries(spec.ports.map(({ inside }) => [`${inside}/tcp`, {}])),
    StopSignal: 'SIGTERM',
    StopTimeout: 40,
    Healthcheck: healthCheck
      ? { Test: ['CMD', ...healthCheck], Interval: 30e9, Timeout: 10e9, StartPeriod: 20e9, Retries: 3 }
      : { Test: ['NONE'] },
    HostConfig: {
      NetworkMode: 'bridge',
      PortBindings: Object.fromEntries(spec.ports.map(toBinding)),
      Mounts: [mount],
      Tmpfs: { '/tmp': 'rw,noexec,nosuid,nodev,size=16m' },
      ReadonlyRootfs: true,
      CapDrop: ['ALL'],
      SecurityOpt: ['no-new-privileges'],
      Memory: spec.memory,
      RestartPolicy: { Name: spec.restarts ? 'unless-stopped' : 'no' },
      ...(Object.keys(spec.logOptions).length > 0 && { LogConfig: { Type: '', Config: spec.logOptions } }),
    },
  }
}

function toBinding({ inside, outside }: PublishedPort): [string, object[]] {
  return [`${inside}/tcp`, [{ HostIp: '127.0.0.1', HostPort: outside === 0 ? '' : String(outside) }]]
}

export function toContainerState(found: Dockerode.ContainerInspectInfo): ContainerState {
  const { State, NetworkSettings, Config } = found
  const bindings = Object.entries(NetworkSettings.Ports ?? {}) as [string, { HostPort: string }[] | null][]
  return {
    id: found.Id,
    name: found.Name.replace(/^\//, ''),
    labels: Config.Labels ?? {},
    image: found.Image,
    user: Config.User,
    running: State.Running && !State.Restarting,
    restarting: State.Restarting,
    exitCode: State.ExitCode,
    ...toEndState(State),
    startedAt: State.StartedAt,
    networks: Object.keys(NetworkSettings.Networks ?? {}),
    ports: bindings.flatMap(([port, at]) =>
      at?.[0] ? [{ inside: Number.parseInt(port, 10), outside: Number(at[0].HostPort) }] : [],
    ),
  }
}

/** Reads when and how a container ended. */
function toEndState({ FinishedAt, OOMKilled }: { FinishedAt?: string; OOMKilled?: boolean }): Partial<ContainerState> {
  // Ignores a time in the year 1, which the engine writes for never.
  const hasEnded = FinishedAt !== undefined && FinishedAt !== '' && !FinishedAt.startsWith('0001-')
  return { ...(hasEnded && { finishedAt: FinishedAt }), ...(OOMKilled === true && { outOfMemory: true }) }
}
