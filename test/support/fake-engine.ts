import { createServer, type Server } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { PassThrough } from 'node:stream'
import { onTestFinished } from 'vitest'
import { computeHealthProof } from '../../src/admin/api.ts'
import {
  type ContainerSpec,
  type ContainerState,
  type DockerEngine,
  type DockerEngineInfo,
  DockerError,
  ExecError,
  type ImageState,
  type NetworkSpec,
  type NetworkState,
  type VolumeState,
} from '../../src/docker/engine.ts'

const defaultInfo: DockerEngineInfo = {
  version: '28.0.0',
  operatingSystem: 'Debian GNU/Linux 12 (bookworm)',
  hostName: 'here',
  architecture: 'amd64',
  os: 'linux',
  imageStore: 'classic',
  isRootless: false,
  isPodman: false,
  logDriver: 'json-file',
  mirrors: [],
  insecure: [],
}

interface FakeContainer {
  readonly spec: ContainerSpec
  state: ContainerState
  readonly log: string[]
  readonly unpacked: { folder: string; archive: Buffer }[]
  server?: Server
}

/** A started container answers, stays silent, is refused, or ends at once with this exit code and these log lines. */
export type Outcome = 'answers' | 'silent' | { refusal: string } | { code: number; lines: string[] }

/** An engine in memory that passes the same contract as a real one. */
export interface FakeEngine extends DockerEngine {
  readonly container: (name: string) => FakeContainer | undefined
  /** Actions, in order: `create mirror`, `pull node:24-slim`. */
  readonly done: string[]
  addImage(name: string, image?: Partial<ImageState>): void
  /** The outcome of a mirror in a started container. */
  outcome: Outcome | ((spec: ContainerSpec) => Outcome)
  /** The outcome of a container that only tests an image. */
  trial: Exclude<Outcome, 'answers'>
  /** Images that can be pulled. */
  readonly registry: Map<string, Partial<ImageState>>
  /** Addresses of published ports by container id; default: 127.0.0.1. */
  readonly addresses: Map<string, string>
  /** Names of the container that joined last, by network. */
  readonly names: Map<string, readonly string[]>
  /** Refuses an action on a container, such as `connect kind`, with the returned text. */
  refuse: ((what: string) => string | undefined) | undefined
  endpoint: DockerEngine['endpoint']
  isRemote: boolean
  /** Refuses to create a network, with the returned text. */
  refuseNetwork: ((spec: NetworkSpec) => string | undefined) | undefined
}

/** Creates an engine. Containers with a script as command understand `echo`, `sleep` and `exit`; all others are mirrors. */
export function createFakeEngine(info: Partial<DockerEngineInfo> = {}): FakeEngine {
  const containers = new Map<string, FakeContainer>()
  const images = new Map<string, ImageState>()
  const networks = new Map<string, NetworkState>()
  const volumes = new Map<string, VolumeState>()
  const watchers = new Set<() => void>()
  let count = 0
  const newId = () => String((count += 1)).padStart(64, '0')
  const done: string[] = []

  /** Records an action, unless `refuse` refuses it. */
  const note = (what: string) => {
    const refusal = fake.refuse?.(what)
    if (refusal !== undefined) throw new DockerError(500, refusal)
    done.push(what)
  }

  const fake: FakeEngine = {
    endpoint: { kind: 'socket', path: '/var/run/docker.sock' },
    isRemote: false,
    done,
    outcome: 'answers',
    trial: { code: 0, lines: [] },
    registry: new Map(),
    addresses: new Map(),
    names: new Map(),
    refuse: undefined,
    refuseNetwork: undefined,
    container: (name) => findContainer(name),
    addImage(name, image = {}) {
      const defaults = { id: `sha256:${newId()}`, architecture: 'amd64', os: 'linux', labels: {}, hasEntrypoint: false }
      images.set(name, { ...defaults, ...image })
    },
    ping: async () => true,
    getInfo: async () => ({ ...defaultInfo, ...info }),
    findInfo: () => fake.getInfo(),
    containers: {
      async find(name) {
        return findContainer(name)?.state
      },
      async findPublishing(port) {
        const running = [...containers.values()].filter(({ state }) => state.running)
        return running
          .filter(({ state }) => state.ports.some(({ outside }) => outside === port))
          .map(({ state: { id, name } }) => ({ name, address: fake.addresses.get(id) ?? '127.0.0.1' }))
      },
      async rename(container, name) {
        const found = mustFind(container)
        if (findContainer(name)) throw new DockerError(409, `Conflict. The name "/${name}" is already in use`)
        note(`rename ${found.state.name} ${name}`)
        found.state = { ...found.state, name }
      },
      async create(spec) {
        if (findContainer(spec.name))
          throw new DockerError(409, `Conflict. The container name "/${spec.name}" is already in use`)
        const image = findImage(spec.image)
        if (!image) throw new DockerError(404, `No such image: ${spec.image}`)
        const id = newId()
        const { name, labels, user, data } = spec
        if ('volume' in data.from) makeVolume(data.from.volume, {})
        const state = {
          id,
          name,
          labels,
          user,
          image: image.id,
          running: false,
          restarting: false,
          exitCode: 0,
          startedAt: new Date(0).toISOString(),
          networks: ['bridge'],
          ports: [],
        }
        note(`create ${spec.name}`)
        containers.set(id, { spec, state, log: [], unpacked: [] })
        return id
      },
      async start(name) {
        const container = mustFind(name)
        if (container.state.running) return
        note(`start ${container.state.name}`)
        await begin(container)
      },
      async stop(name) {
        const container = findContainer(name)
        if (!container?.state.running && !container?.state.restarting) return
        note(`stop ${container.state.name}`)
        await end(container, 137)
      },
      async remove(name) {
        const container = findContainer(name)
        if (!container) return
        note(`remove ${container.state.name}`)
        await end(container, 137)
        containers.delete(container.state.id)
      },
      async unpack(name, folder, archive) {
        const container = mustFind(name)
        const refusal = fake.refuse?.(`unpack ${container.state.name}`)
        if (refusal !== undefined) throw new DockerError(500, refusal)
        container.unpacked.push({ folder, archive })
      },
      async *readLogs(name, { lines }) {
        yield* mustFind(name).log.slice(-lines)
      },
      async exec(name, command) {
        const { state, server } = mustFind(name)
        if (!state.running) throw new DockerError(409, `container ${state.id} is not running`)
        if (command.includes('cat')) return new PassThrough()
        if (command.includes('exit')) return said('no more')
        return server ? connect((server.address() as AddressInfo).port, '127.0.0.1') : said('connect ECONNREFUSED')
      },
      async wait(name) {
        const { state } = mustFind(name)
        return state.running ? new Promise<never>(() => {}) : state.exitCode
      },
    },
    images: {
      find: async (name) => findImage(name),
      async pull(name, signal) {
        signal.throwIfAborted()
        done.push(`pull ${name}`)
        const image = fake.registry.get(name)
        if (!image) throw new DockerError(404, `manifest for ${name} not found`)
        fake.addImage(name, image)
      },
      async tryPull(name) {
        done.push(`try ${name}`)
        return { failed: fake.registry.has(name) ? undefined : `manifest for ${name} not found` }
      },
      import: (name, labels, archive) => make('import', name, labels, archive, false),
      build: (name, labels, archive) => make('build', name, labels, archive, true),
      async remove(name) {
        const image = findImage(name)
        if ([...containers.values()].some(({ state }) => state.image === image?.id)) return
        images.delete(name)
      },
    },
    networks: {
      find: async (name) => networks.get(name),
      async create(spec) {
        const refusal = fake.refuseNetwork?.(spec)
        if (refusal !== undefined) throw new DockerError(403, refusal)
        if (networks.has(spec.name)) throw new DockerError(409, `network with name ${spec.name} already exists`)
        const { name, options, ipv6Subnet } = spec
        networks.set(name, {
          id: newId(),
          name,
          driver: 'bridge',
          options,
          ipv6: ipv6Subnet !== undefined,
          containers: 0,
        })
        done.push(`network ${name} ${ipv6Subnet ?? 'IPv4'}`)
        for (const onChange of watchers) onChange()
      },
      async connect(network, name, names) {
        const { state } = mustFind(name)
        note(`connect ${network}`)
        fake.names.set(network, names)
        mustFind(name).state = { ...state, networks: [...state.networks, network] }
      },
      async disconnect(network, name) {
        const { state } = mustFind(name)
        mustFind(name).state = { ...state, networks: state.networks.filter((other) => other !== network) }
        note(`disconnect ${network}`)
      },
      async findGateways(name) {
        const at = [...networks.keys()].indexOf(name)
        return at === -1 ? [] : [`172.${17 + at}.0.1`]
      },
      async watch(onChange, signal) {
        watchers.add(onChange)
        onChange()
        if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
        watchers.delete(onChange)
      },
    },
    volumes: {
      find: async (name) => volumes.get(name),
      create: async (name, labels) => makeVolume(name, labels),
      async remove(name) {
        const user = [...containers.values()].find(
          ({ spec: { data } }) => 'volume' in data.from && data.from.volume === name,
        )
        if (user) throw new DockerError(409, `remove ${name}: volume is in use`)
        volumes.delete(name)
      },
    },
  }
  const options = { 'com.docker.network.driver.mtu': '1400' }
  networks.set('bridge', { id: newId(), name: 'bridge', driver: 'bridge', options, ipv6: false, containers: 0 })

  function makeVolume(name: string, labels: VolumeState['labels']): void {
    if (!volumes.has(name)) volumes.set(name, { labels })
  }

  function findContainer(name: string): FakeContainer | undefined {
    return containers.get(name) ?? [...containers.values()].find(({ state }) => state.name === name)
  }

  function mustFind(name: string): FakeContainer {
    const found = findContainer(name)
    if (found) return found
    throw new DockerError(404, `No such container: ${name}`)
  }

  function findImage(name: string): ImageState | undefined {
    return images.get(name) ?? [...images.values()].find(({ id }) => id === name)
  }

  async function make(
    how: string,
    name: string,
    labels: Readonly<Record<string, string>>,
    archive: AsyncIterable<Uint8Array>,
    hasEntrypoint: boolean,
  ): Promise<void> {
    let bytes = 0
    for await (const chunk of archive) bytes += chunk.length
    if (bytes === 0) throw new DockerError(500, 'the archive is empty')
    note(`${how} ${name}`)
    fake.addImage(name, { labels, hasEntrypoint })
  }

  async function begin(container: FakeContainer): Promise<void> {
    const { spec } = container
    const script = spec.entrypoint?.at(-1) === '-c' ? spec.command[0]! : undefined
    if (script !== undefined) {
      for (const [, text] of script.matchAll(/echo (\w+)/g)) container.log.push(text!)
      const code = Number(/exit (\d+)/.exec(script)?.[1] ?? 0)
      const runs = script.includes('sleep')
      container.state = { ...container.state, running: runs, exitCode: code, ports: runs ? published(spec) : [] }
      return
    }
    const isTrial = !spec.restarts
    const outcome = isTrial ? fake.trial : typeof fake.outcome === 'function' ? fake.outcome(spec) : fake.outcome
    if (typeof outcome === 'object' && 'refusal' in outcome) throw new DockerError(500, outcome.refusal)
    if (typeof outcome === 'object') {
      container.log.push(...outcome.lines)
      container.state = { ...container.state, exitCode: outcome.code, restarting: spec.restarts }
      return
    }
    if (outcome === 'silent') {
      container.state = { ...container.state, running: true, ports: published(spec) }
      return
    }
    const server = createServer((request, response) => {
      const { pathname, searchParams } = new URL(request.url!, 'http://127.0.0.1')
      const proof = computeHealthProof(spec.env['MIRROR_INSTANCE'] ?? '', searchParams.get('challenge') ?? '')
      response.writeHead(pathname === '/healthz' ? 200 : 404).end(JSON.stringify({ proof }))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => new Promise<void>((resolve) => void server.close(() => resolve())))
    const { port } = server.address() as AddressInfo
    container.server = server
    // Publish the real port of the admin listener, which is the last one.
    const ports = published(spec).map((at, index) => (index === spec.ports.length - 1 ? { ...at, outside: port } : at))
    container.state = { ...container.state, running: true, ports }
  }

  async function end(container: FakeContainer, code: number): Promise<void> {
    container.server?.close()
    container.state = { ...container.state, running: false, restarting: false, ports: [], exitCode: code }
  }

  function published({ ports }: ContainerSpec) {
    return ports.map(({ inside, outside }) => ({ inside, outside: outside === 0 ? 40_000 + inside : outside }))
  }

  return fake
}

function said(words: string): PassThrough {
  const stream = new PassThrough()
  setImmediate(() => stream.destroy(new ExecError(words)))
  return stream
}
