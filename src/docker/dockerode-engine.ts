import { Readable } from 'node:stream'
import type Dockerode from 'dockerode'
import { linesOfLog } from '../runtime/docker-log.ts'
import { asked, askedIfThere } from '../runtime/dockerode-asked.ts'
import { execStream } from '../runtime/exec-stream.ts'
import type { ContainerSpec, ContainerState, DockerContainers, PublishedPort } from './engine.ts'

/** The containers of an engine. */
export function createContainers(client: Dockerode): DockerContainers {
  return {
    async find(container) {
      const found = await askedIfThere(client.getContainer(container).inspect())
      return found && toState(found)
    },
    async publishing(port) {
      const listed = await asked(client.listContainers())
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
      return (await asked(client.createContainer(request))).id
    },
    start: async (container) => void (await unlessSo(asked(client.getContainer(container).start()))),
    rename: async (container, name) => void (await asked(client.getContainer(container).rename({ name }))),
    stop: async (container, seconds) =>
      void (await unlessSo(askedIfThere(client.getContainer(container).stop({ t: seconds })))),
    remove: async (container) =>
      void (await askedIfThere(client.getContainer(container).remove({ force: true, v: true }))),
    unpack: async (container, folder, archive) =>
      void (await asked(client.getContainer(container).putArchive(archive, { path: folder }))),
    async *logs(container, { lines, follow, signal }) {
      const common = { stdout: true, stderr: true, tail: lines }
      const log = client.getContainer(container)
      const stream = follow
        ? Readable.from(await asked(log.logs({ ...common, follow: true })))
        : Readable.from([await asked(log.logs({ ...common, follow: false }))])
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
      const program = await asked(client.getContainer(container).exec({ ...streams, Cmd: [...command] }))
      return execStream(await asked(program.start({ hijack: true, stdin: true, Tty: false, Detach: false })))
    },
    wait: async (container) =>
      ((await asked(client.getContainer(container).wait())) as { StatusCode: number }).StatusCode,
  }
}

/** 304: it is so already. */
async function unlessSo<T>(ask: Promise<T>): Promise<T | undefined> {
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
