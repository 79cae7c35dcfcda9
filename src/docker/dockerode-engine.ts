import { access } from 'node:fs/promises'
import { isIP } from 'node:net'
import { Readable } from 'node:stream'
import type Dockerode from 'dockerode'
import { getErrno, exitCode, isConnectionFailure, MirrorError, createSystemError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { type Clock, systemClock } from '../lib/time.ts'
import { createExecStream, readLogLines } from './connection.ts'
import {
  awaitProgress,
  ignoreNotModified,
  createDockerClient,
  ignoreUnanswered,
  orUndefinedIf404,
  readInfo,
  readProgress,
  toCreateBody,
  toContainerState,
  translateErrors,
  ignoreUnavailable,
  awaitEventsEnd,
} from './dockerode.ts'
import {
  type DockerEndpoint,
  renderDockerHost,
  findDockerChoice,
  findDockerEndpoint,
  isRemoteEngine,
} from './endpoint.ts'
import {
  type DockerContainers,
  type DockerEngine,
  DockerError,
  type DockerImages,
  type DockerNetworks,
  type DockerVolumes,
} from './engine.ts'

interface DockerEngineOptions {
  readonly clock?: Clock
  /** Holds the time until `networks.watch` tries an absent engine again, ms. */
  readonly retryMs?: number
  /** Returns a client that has connected already. */
  readonly connect?: Connect
}

/** Connects to the engine at first use, and loads the library then. Throws the system's error while there is no engine. */
type Connect = () => Promise<Dockerode>

/** Sends a request; errors are translated, see `translateErrors`. */
type SendRequest = <T>(request: (client: Dockerode) => Promise<T>) => Promise<T>

/**
 * Limits the time of an answer, ms. A local engine answers in milliseconds, one in a virtual machine that wakes up in a second or
 * two.
 */
const answerMs = 5000
/** Firewalls may drop packets to another machine silently; a login takes a while. */
const remoteAnswerMs = 45_000

/** Creates the engine behind an endpoint. The engine need not be there: nothing is sent before the first call. */
export function createDockerEngine(
  endpoint: DockerEndpoint,
  { clock = systemClock, retryMs = 5000, connect = createConnect(endpoint) }: DockerEngineOptions = {},
): DockerEngine {
  const send: SendRequest = (request) => translateErrors(connect().then(request))
  return {
    endpoint,
    isRemote: isRemoteEngine(endpoint),
    ping: async () => (await ignoreUnavailable(async () => (await connect()).ping())) !== undefined,
    getInfo: () => send((client) => readInfo(client)),
    findInfo() {
      const signal = AbortSignal.timeout(answerMs)
      return ignoreUnavailable(async () => readInfo(await connect(), signal))
    },
    containers: createContainers(send),
    images: createImages(send, connect),
    networks: createNetworks(send, connect, { clock, retryMs }),
    volumes: createVolumes(send),
  }
}

function createConnect(endpoint: DockerEndpoint): Connect {
  let client: Dockerode | undefined
  return async () => {
    // Avoids loading the library, which takes half a second, for an engine that is not there.
    if (client === undefined && endpoint.kind === 'socket') await access(endpoint.path)
    return (client ??= await createDockerClient(endpoint))
  }
}

/**
 * Opens the engine at a recorded endpoint; without one the engine that `docker` would use. Throws a MirrorError (exit 4) when the
 * engine is not there or refuses this user.
 */
export async function openEngine(surroundings: CommandEnvironment, recorded?: DockerEndpoint): Promise<DockerEngine> {
  return openEngineAt(recorded ?? (await findChosenEndpoint(surroundings)))
}

async function findChosenEndpoint({ platform, env, homedir }: CommandEnvironment): Promise<DockerEndpoint> {
  const endpoint = await findDockerEndpoint({ platform, env, homedir })
  if (endpoint !== undefined) return endpoint
  const { by = 'Nothing', host } = (await findDockerChoice({ env, homedir })) ?? {}
  if (host === undefined)
    throw new MirrorError(`${by} does not exist.`, {
      exit: exitCode.missing,
      hints: ['docker context ls', 'DOCKER_CONTEXT=default mirror up …'],
    })
  const forms = 'unix://, npipe://, tcp:// or ssh://[user@]host[:port]'
  throw new MirrorError(`${by} is not the address of a Docker engine: ${forms}.`, {
    exit: exitCode.missing,
    hints: ['docker context inspect', 'DOCKER_HOST=unix:///var/run/docker.sock mirror up …'],
  })
}

/** Opens the engine at an endpoint. Throws a MirrorError (exit 4) when the engine is not there or refuses this user. */
export async function openEngineAt(endpoint: DockerEndpoint): Promise<DockerEngine> {
  const connect = createConnect(endpoint)
  try {
    const client = await connect()
    if (isRemoteEngine(endpoint)) await pingRemote(client)
    else await client.ping()
  } catch (error) {
    throw createUnreachableError(error, endpoint)
  }
  return createDockerEngine(endpoint, { connect })
}

async function pingRemote(client: Dockerode): Promise<void> {
  const abortSignal = AbortSignal.timeout(remoteAnswerMs)
  const abortable = client as unknown as { ping(options: { abortSignal: AbortSignal }): Promise<unknown> }
  await abortable.ping({ abortSignal }).catch((error: unknown) => {
    if (!abortSignal.aborted) throw error
    throw createSystemError('ETIMEDOUT', 'read', `it was silent for ${remoteAnswerMs / 1000} s`)
  })
}

function createUnreachableError(error: unknown, endpoint: DockerEndpoint): unknown {
  const code = getErrno(error)
  if (!isConnectionFailure(error) && !(error instanceof DockerError)) return error
  const where = endpoint.kind === 'socket' ? endpoint.path : renderDockerHost(endpoint).replace('tcp://', '')
  if (code === 'EACCES' || code === 'EPERM')
    return new MirrorError(`No permission to use the Docker engine at ${where}: permission denied.`, {
      exit: exitCode.missing,
      hints: [
        'sudo usermod -aG docker "$USER"   (then log in again)',
        'mirror up --runtime process   (as a plain process, without Docker)',
      ],
      cause: error,
    })
  return new MirrorError(`No Docker engine answers${describeSilence(error as Error, where)}.`, {
    exit: exitCode.missing,
    hints: ['docker info   (shows the reason)', 'mirror up --runtime process   (as a plain process, without Docker)'],
    cause: error,
  })
}

/** Describes why no engine answers, without the words of Node for it. */
function describeSilence(error: Error, where: string): string {
  switch (getErrno(error)) {
    case 'ENOENT':
      return `: ${where} does not exist`
    case 'ECONNREFUSED':
      return ` at ${where}: the connection was refused`
    default:
      return ` at ${where}: ${error.message}`
  }
}

function createContainers(send: SendRequest): DockerContainers {
  return {
    async find(container) {
      const found = await orUndefinedIf404(send((client) => client.getContainer(container).inspect()))
      return found && toContainerState(found)
    },
    async findPublishing(port) {
      const listed = await send((client) => client.listContainers())
      return listed.flatMap(({ Names, Ports }) =>
        (Ports ?? [])
          .filter((at) => at.PublicPort === port && at.Type === 'tcp')
          // podman leaves IP empty for all addresses.
          .map(({ IP }) => ({ name: (Names[0] ?? '').replace(/^\//, ''), address: IP || '0.0.0.0' })),
      )
    },
    async create(spec) {
      // Sets `_query` and `_body`: without them the library puts the whole body, environment included, into the URL as well.
      const request = { _query: { name: spec.name }, _body: toCreateBody(spec) } as Dockerode.ContainerCreateOptions
      return (await send((client) => client.createContainer(request))).id
    },
    start: async (container) =>
      void (await ignoreNotModified(send((client) => client.getContainer(container).start()))),
    rename: async (container, name) => void (await send((client) => client.getContainer(container).rename({ name }))),
    stop: async (container, seconds) =>
      void (await ignoreNotModified(
        orUndefinedIf404(send((client) => client.getContainer(container).stop({ t: seconds }))),
      )),
    remove: async (container) =>
      void (await orUndefinedIf404(send((client) => client.getContainer(container).remove({ force: true, v: true })))),
    unpack: async (container, folder, archive) =>
      void (await send((client) => client.getContainer(container).putArchive(archive, { path: folder }))),
    async *readLogs(container, { lines, follow, signal }) {
      const common = { stdout: true, stderr: true, tail: lines }
      const stream = follow
        ? Readable.from(await send((client) => client.getContainer(container).logs({ ...common, follow: true })))
        : Readable.from([await send((client) => client.getContainer(container).logs({ ...common, follow: false }))])
      const stop = () => stream.destroy()
      signal.addEventListener('abort', stop, { once: true })
      try {
        if (!signal.aborted) yield* readLogLines(stream, signal)
      } finally {
        signal.removeEventListener('abort', stop)
        stop()
      }
    },
    async exec(container, command) {
      const streams = { AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: false }
      const program = await send((client) => client.getContainer(container).exec({ ...streams, Cmd: [...command] }))
      return createExecStream(await send(() => program.start({ hijack: true, stdin: true, Tty: false, Detach: false })))
    },
    wait: async (container) =>
      ((await send((client) => client.getContainer(container).wait())) as { StatusCode: number }).StatusCode,
  }
}

function createImages(send: SendRequest, connect: Connect): DockerImages {
  return {
    async find(image) {
      const found = await orUndefinedIf404(send((client) => client.getImage(image).inspect()))
      if (found === undefined) return undefined
      return {
        id: found.Id,
        architecture: found.Architecture,
        os: found.Os,
        labels: found.Config.Labels ?? {},
        hasEntrypoint: (found.Config.Entrypoint ?? []).length > 0,
      }
    },
    async pull(image, signal) {
      await awaitProgress(await send((client) => client.pull(image, { abortSignal: signal })), signal)
    },
    async tryPull(image, timeoutMs) {
      const limit = AbortSignal.timeout(timeoutMs)
      const pull = async () => readProgress(await (await connect()).pull(image, { abortSignal: limit }))
      const failed = await pull().catch((error: unknown) => {
        if (limit.aborted) return `the pull took longer than ${timeoutMs / 1000} s`
        if (error instanceof Error && ('statusCode' in error || isConnectionFailure(error))) return error.message
        throw error
      })
      const abortSignal = AbortSignal.timeout(answerMs)
      await ignoreUnavailable(async () => (await connect()).getImage(image).remove({ abortSignal }))
      return { failed }
    },
    async import(name, labels, archive) {
      const changes = Object.entries(labels).map(([key, value]) => `LABEL ${key}=${JSON.stringify(value)}`)
      // Passes the whole name, which podman expects where Docker expects the repository; podman ignores the tag.
      const target = { repo: name, tag: name.slice(name.lastIndexOf(':') + 1) }
      const file = Readable.from(archive) as unknown as string
      await awaitProgress(await send((client) => client.importImage(file, { ...target, changes })))
    },
    async build(name, labels, archive) {
      // Chooses the classic builder, which needs this one request only.
      const options = { t: name, labels: { ...labels }, version: '1' as const, rm: true, forcerm: true }
      await awaitProgress(await send((client) => client.buildImage(Readable.from(archive), options)))
    },
    async remove(image) {
      try {
        await orUndefinedIf404(send((client) => client.getImage(image).remove()))
      } catch (error) {
        if (!(error instanceof DockerError) || error.status !== 409) throw error
      }
    },
  }
}

function createNetworks(
  send: SendRequest,
  connect: Connect,
  { clock, retryMs }: { readonly clock: Clock; readonly retryMs: number },
): DockerNetworks {
  return {
    async find(name) {
      const listed = await send((client) => client.listNetworks({ filters: { name: [name] } }))
      // Compares whole names, because the engine's filter matches parts of names.
      const network = listed.find((network) => network.Name === name)
      if (network === undefined) return undefined
      const inspected = await orUndefinedIf404(send((client) => client.getNetwork(network.Id).inspect()))
      if (inspected === undefined) return undefined
      return {
        id: inspected.Id,
        name: inspected.Name,
        driver: inspected.Driver,
        ipv6: inspected.EnableIPv6,
        options: inspected.Options ?? {},
        containers: Object.keys(inspected.Containers ?? {}).length,
      }
    },
    async create({ name, ipv6Subnet, options }) {
      await send((client) =>
        client.createNetwork({
          Name: name,
          Driver: 'bridge',
          CheckDuplicate: true,
          Options: { ...options },
          EnableIPv6: ipv6Subnet !== undefined,
          IPAM: { Driver: 'default', Options: {}, Config: ipv6Subnet === undefined ? [] : [{ Subnet: ipv6Subnet }] },
        }),
      )
    },
    async connect(network, container, names) {
      const EndpointConfig = { Aliases: [...names] }
      await send((client) => client.getNetwork(network).connect({ Container: container, EndpointConfig }))
    },
    async disconnect(network, container) {
      await send((client) => client.getNetwork(network).disconnect({ Container: container, Force: true }))
    },
    async findGateways(name) {
      const filters = { name: [name], driver: ['bridge'] }
      const listed = await ignoreUnavailable(async () => (await connect()).listNetworks({ filters }))
      const addresses = listed
        ?.filter((network) => network.Name === name)
        .flatMap((network) => network.IPAM?.Config ?? [])
        // Older engines write an IPv6 gateway with its prefix length.
        .map(({ Gateway }) => (Gateway ?? '').replace(/\/\d+$/, ''))
        .filter((address) => isIP(address) !== 0)
      return addresses && [...new Set(addresses)]
    },
    async watch(onChange, signal) {
      let isPresent: boolean | undefined
      while (!signal.aborted) {
        const hasAnswered = await ignoreUnanswered(async () => {
          const events = await (await connect()).getEvents({ filters: { type: ['network'] }, abortSignal: signal })
          // Calls back after subscribing, so that no change in between is missed.
          isPresent = true
          onChange()
          await awaitEventsEnd(events, onChange, signal)
          return true
        })
        if (signal.aborted) return
        if (hasAnswered === undefined && isPresent !== false) {
          isPresent = false
          onChange()
        }
        await clock.sleep(retryMs, signal).catch(() => {})
      }
    },
  }
}

function createVolumes(send: SendRequest): DockerVolumes {
  return {
    async find(name) {
      const found = await orUndefinedIf404(send((client) => client.getVolume(name).inspect()))
      return found && { labels: found.Labels ?? {} }
    },
    create: async (name, labels) =>
      void (await send((client) => client.createVolume({ Name: name, Labels: { ...labels } }))),
    remove: async (name) => void (await orUndefinedIf404(send((client) => client.getVolume(name).remove()))),
  }
}
