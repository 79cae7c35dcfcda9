import { access } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import type Dockerode from 'dockerode'
import { errnoOf, exitCode, isConnectionFailure, MirrorError, systemError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import { execStream } from './connection.ts'
import { openClient, orUndefinedIf404, translateErrors, translateStreamErrors } from './dockerode.ts'
import { type DockerEndpoint, engineHost, findDockerChoice, findDockerEndpoint, isRemoteEngine } from './endpoint.ts'
import {
  type ContainerEngine,
  type ContainerSpec,
  type ContainerState,
  type DockerContainers,
  DockerError,
  type DockerImages,
  type DockerNetworks,
  type DockerVolumes,
  imageArchitecture,
  type PublishedPort,
} from './engine.ts'

/** The engine behind an endpoint. Throws a MirrorError (exit 4) when it is not there, or does not let us in. */
export async function openContainerEngine(endpoint: DockerEndpoint): Promise<ContainerEngine> {
  try {
    if (endpoint.kind === 'socket') await access(endpoint.path)
    const client = await openClient(endpoint)
    if (isRemoteEngine(endpoint)) await pingAfar(client)
    else await client.ping()
    return {
      endpoint,
      isRemote: isRemoteEngine(endpoint),
      async info() {
        const info = (await translateErrors(client.info() as Promise<EngineAnswer>)) satisfies EngineAnswer
        return {
          version: info.ServerVersion,
          architecture: imageArchitecture(info.Architecture),
          os: info.OSType,
          rootless: (info.SecurityOptions ?? []).some((option) => /(^|=)rootless(,|$)/.test(option)),
          system: info.OperatingSystem,
          logDriver: info.LoggingDriver,
        }
      },
      containers: createContainers(client),
      images: createImages(client),
      networks: createNetworks(client),
      volumes: createVolumes(client),
    }
  } catch (error) {
    throw unreachable(error, endpoint)
  }
}

/** What is on the way to another machine may swallow a question; a login takes a while. */
const answerAfarMs = 45_000

async function pingAfar(client: Dockerode): Promise<void> {
  const abortSignal = AbortSignal.timeout(answerAfarMs)
  const asking = (client as unknown as { ping(options: { abortSignal: AbortSignal }): Promise<unknown> }).ping({
    abortSignal,
  })
  await asking.catch((error: unknown) => {
    if (!abortSignal.aborted) throw error
    throw systemError('ETIMEDOUT', 'read', `it was silent for ${answerAfarMs / 1000} s`)
  })
}

interface EngineAnswer {
  ServerVersion: string
  Architecture: string
  OSType: string
  OperatingSystem?: string
  SecurityOptions: string[] | null
  LoggingDriver: string
}

function createNetworks(client: Dockerode): DockerNetworks {
  return {
    async find(name) {
      const listed = await translateErrors(client.listNetworks({ filters: { name: [name] } }))
      // The engine's filter matches parts of names.
      const network = listed.find((network) => network.Name === name)
      if (network === undefined) return undefined
      const inspected = await orUndefinedIf404(client.getNetwork(network.Id).inspect())
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
      await translateErrors(
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
      await translateErrors(client.getNetwork(network).connect({ Container: container, EndpointConfig }))
    },
    async disconnect(network, container) {
      await translateErrors(client.getNetwork(network).disconnect({ Container: container, Force: true }))
    },
  }
}

function createVolumes(client: Dockerode): DockerVolumes {
  return {
    async find(name) {
      const found = await orUndefinedIf404(client.getVolume(name).inspect())
      return found && { labels: found.Labels ?? {} }
    },
    create: async (name, labels) =>
      void (await translateErrors(client.createVolume({ Name: name, Labels: { ...labels } }))),
    remove: async (name) => void (await orUndefinedIf404(client.getVolume(name).remove())),
  }
}

function unreachable(error: unknown, endpoint: DockerEndpoint): unknown {
  const code = errnoOf(error)
  if (!isConnectionFailure(error) && !(error instanceof DockerError)) return error
  const where = endpoint.kind === 'socket' ? endpoint.path : engineHost(endpoint).replace('tcp://', '')
  if (code === 'EACCES' || code === 'EPERM')
    return new MirrorError(`You may not use the Docker engine at ${where}: permission denied.`, {
      exit: exitCode.missing,
      hints: [
        'sudo usermod -aG docker "$USER"   (then log in again)',
        'mirror up --runtime process   (as a plain process, without Docker)',
      ],
      cause: error,
    })
  return new MirrorError(`No Docker engine answers at ${where}: ${(error as Error).message}.`, {
    exit: exitCode.missing,
    hints: ['docker info   (says what is wrong)', 'mirror up --runtime process   (as a plain process, without Docker)'],
    cause: error,
  })
}

/** The containers of an engine. */
function createContainers(client: Dockerode): DockerContainers {
  return {
    async find(container) {
      const found = await orUndefinedIf404(client.getContainer(container).inspect())
      return found && toState(found)
    },
    async publishing(port) {
      const listed = await translateErrors(client.listContainers())
      return listed.flatMap(({ Names, Ports }) =>
        (Ports ?? [])
          .filter((at) => at.PublicPort === port && at.Type === 'tcp')
          // podman leaves it empty for all addresses.
          .map(({ IP }) => ({ name: (Names[0] ?? '').replace(/^\//, ''), address: IP || '0.0.0.0' })),
      )
    },
    async create(spec) {
      // Apart: the library would put the whole body, the environment too, into the address as well.
      const request = { _query: { name: spec.name }, _body: toBody(spec) } as Dockerode.ContainerCreateOptions
      return (await translateErrors(client.createContainer(request))).id
    },
    start: async (container) => void (await ignoreNotModified(translateErrors(client.getContainer(container).start()))),
    rename: async (container, name) => void (await translateErrors(client.getContainer(container).rename({ name }))),
    stop: async (container, seconds) =>
      void (await ignoreNotModified(orUndefinedIf404(client.getContainer(container).stop({ t: seconds })))),
    remove: async (container) =>
      void (await orUndefinedIf404(client.getContainer(container).remove({ force: true, v: true }))),
    unpack: async (container, folder, archive) =>
      void (await translateErrors(client.getContainer(container).putArchive(archive, { path: folder }))),
    async *logs(container, { lines, follow, signal }) {
      const common = { stdout: true, stderr: true, tail: lines }
      const log = client.getContainer(container)
      const stream = follow
        ? Readable.from(await translateErrors(log.logs({ ...common, follow: true })))
        : Readable.from([await translateErrors(log.logs({ ...common, follow: false }))])
      const stop = () => stream.destroy()
      signal.addEventListener('abort', stop, { once: true })
      try {
        if (!signal.aborted) yield* linesOfLog(stream, signal)
      } finally {
        signal.removeEventListener('abort', stop)
        stop()
      }
    },
    async converse(container, command) {
      const streams = { AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: false }
      const program = await translateErrors(client.getContainer(container).exec({ ...streams, Cmd: [...command] }))
      return execStream(await translateErrors(program.start({ hijack: true, stdin: true, Tty: false, Detach: false })))
    },
    wait: async (container) =>
      ((await translateErrors(client.getContainer(container).wait())) as { StatusCode: number }).StatusCode,
  }
}

/** 304: it is so already. */
async function ignoreNotModified<T>(ask: Promise<T>): Promise<T | undefined> {
  try {
    return await ask
  } catch (error) {
    if (error instanceof Error && 'status' in error && error.status === 304) return undefined
    throw error
  }
}

function toBody(spec: ContainerSpec): object {
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

function toState(found: Dockerode.ContainerInspectInfo): ContainerState {
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
    ...endOf(State),
    startedAt: State.StartedAt,
    networks: Object.keys(NetworkSettings.Networks ?? {}),
    ports: bindings.flatMap(([port, at]) =>
      at?.[0] ? [{ inside: Number.parseInt(port, 10), outside: Number(at[0].HostPort) }] : [],
    ),
  }
}

/** When and how a container ended. */
function endOf({ FinishedAt, OOMKilled }: { FinishedAt?: string; OOMKilled?: boolean }): Partial<ContainerState> {
  // The year 1 is the engine's word for never.
  const hasEnded = FinishedAt !== undefined && FinishedAt !== '' && !FinishedAt.startsWith('0001-')
  return { ...(hasEnded && { finishedAt: FinishedAt }), ...(OOMKilled === true && { outOfMemory: true }) }
}

/** The images of an engine. */
function createImages(client: Dockerode): DockerImages {
  return {
    async find(image) {
      const found = await orUndefinedIf404(client.getImage(image).inspect())
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
      const stream = await translateErrors(client.pull(image, { abortSignal: signal }))
      await untilDone(stream, signal)
    },
    async import(name, labels, archive) {
      const changes = Object.entries(labels).map(([key, value]) => `LABEL ${key}=${JSON.stringify(value)}`)
      // podman wants the whole name where Docker wants the repository, and takes no notice of the tag.
      const place = { repo: name, tag: name.slice(name.lastIndexOf(':') + 1) }
      const file = Readable.from(archive) as unknown as string
      await untilDone(await translateErrors(client.importImage(file, { ...place, changes })))
    },
    async build(name, labels, archive) {
      // The classic builder: it needs nothing but this one request.
      const options = { t: name, labels: { ...labels }, version: '1' as const, rm: true, forcerm: true }
      await untilDone(await translateErrors(client.buildImage(Readable.from(archive), options)))
    },
    async remove(image) {
      try {
        await orUndefinedIf404(client.getImage(image).remove())
      } catch (error) {
        if (!(error instanceof DockerError) || error.status !== 409) throw error
      }
    },
  }
}

/** The engine tells its progress as a JSON object a line, and a failure as the last of them, with status 200. */
async function untilDone(stream: NodeJS.ReadableStream, signal?: AbortSignal): Promise<void> {
  const stop = () => (stream as Readable).destroy()
  signal?.addEventListener('abort', stop, { once: true })
  let rest = ''
  let failure: string | undefined
  try {
    for await (const chunk of translateStreamErrors(stream)) {
      const lines = (rest + String(chunk)).split('\n')
      rest = lines.pop()!
      for (const line of lines) failure = failureIn(line) ?? failure
    }
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', stop)
  }
  signal?.throwIfAborted()
  failure = failureIn(rest) ?? failure
  if (failure !== undefined) throw new DockerError(500, failure)
}

function failureIn(line: string): string | undefined {
  return line.includes('"error"') ? (JSON.parse(line) as { error?: string }).error : undefined
}

const headerBytes = 8

/**
 * The lines in a container's log as the engine sends it: frames of 8 bytes (stream, three zeroes, length) and a payload.
 * https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
 * A stream that is cut when the signal aborts ends quietly.
 */
export async function* linesOfLog(stream: AsyncIterable<Buffer | string>, signal: AbortSignal): AsyncGenerator<string> {
  // A line may be cut anywhere, and the two streams mix between lines only.
  const texts = new Map<number, { decoder: StringDecoder; rest: string }>()
  let bytes = Buffer.alloc(0)
  try {
    for await (const chunk of stream) {
      bytes = Buffer.concat([bytes, Buffer.from(chunk as Buffer)])
      while (bytes.length >= headerBytes && bytes.length >= headerBytes + bytes.readUInt32BE(4)) {
        const end = headerBytes + bytes.readUInt32BE(4)
        const text = texts.get(bytes[0]!) ?? { decoder: new StringDecoder('utf8'), rest: '' }
        texts.set(bytes[0]!, text)
        const lines = (text.rest + text.decoder.write(bytes.subarray(headerBytes, end))).split('\n')
        text.rest = lines.pop()!
        yield* lines
        bytes = bytes.subarray(end)
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
  for (const { rest } of texts.values()) if (rest !== '') yield rest
}

/**
 * The engine that was noted down; without a note the one that `docker` would speak to. Throws a MirrorError (exit 4) where it
 * cannot be asked.
 */
export async function openEngine(surroundings: Surroundings, noted?: DockerEndpoint): Promise<ContainerEngine> {
  return openContainerEngine(noted ?? (await chosenEndpoint(surroundings)))
}

async function chosenEndpoint({ platform, env, homedir }: Surroundings): Promise<DockerEndpoint> {
  const endpoint = await findDockerEndpoint({ platform, env, homedir })
  if (endpoint !== undefined) return endpoint
  const { by = 'Nothing', host } = (await findDockerChoice({ env, homedir })) ?? {}
  if (host === undefined)
    throw new MirrorError(`${by} is not there.`, {
      exit: exitCode.missing,
      hints: ['docker context ls', 'DOCKER_CONTEXT=default mirror up …'],
    })
  const forms = 'unix://, npipe://, tcp:// or ssh://[user@]host[:port]'
  throw new MirrorError(`${by} names no address of a Docker engine: ${forms}.`, {
    exit: exitCode.missing,
    hints: ['docker context inspect', 'DOCKER_HOST=unix:///var/run/docker.sock mirror up …'],
  })
}
