import { writeFileAtomic } from '../lib/fs.ts'
import { isObject, readJsonFile } from '../lib/json.ts'
import type { Clock } from '../lib/time.ts'
import { cutText } from './requests.ts'

/** Describes a program at an address that used the mirror. */
export interface ClientReport {
  /** Holds the address. */
  readonly address: string
  readonly listener: 'cache' | 'registry'
  /** Holds the first product of the user agent, as `containerd` and `2.1.9`; `unknown` without one. */
  readonly product: string
  readonly version?: string
  /** Counts the requests for repositories and the catalog; pings and probe images are not counted. */
  readonly requests: number
  /** Counts only requests for manifests and blobs of the cache. */
  readonly hits: number
  readonly misses: number
  /** Counts the body bytes that were sent. */
  readonly bytes: number
  /** Gives the times of the first and last request (ISO 8601). */
  readonly firstSeen: string
  readonly lastSeen: string
  /**
   * Lists the registries of which this client asked for a tag by HEAD, was answered, and never sent a GET: it probably pulls from the
   * origin. Empty for most. Lists only container engines, which send a HEAD before each pull; other programs send HEAD to watch a tag.
   * An engine that had all images of the registry before it used the mirror looks the same, until it pulls a new one.
   */
  readonly headOnly: readonly string[]
  /**
   * Lists the clients that mirror configured on this machine and that this program may be, by its user agent: `kind`. Absent for a
   * program of another machine, and where the configured clients are not known.
   */
  readonly configured?: readonly string[]
}

/** Identifies the sender of requests. It is one object for as many requests as possible, because it is parsed once. */
export interface ClientIdentity {
  readonly address: string
  readonly agent: string | undefined
}

/** Describes an answered request of a client. */
export interface ClientRequest {
  readonly listener: 'cache' | 'registry'
  /** Names the registry that the repository belongs to; undefined on the registry listener. */
  readonly registry: string | undefined
  readonly kind: 'manifest' | 'blob' | 'other'
  readonly isHead: boolean
  /** Is true for the request of a manifest by tag. */
  readonly byTag: boolean
  readonly isSuccess: boolean
  readonly result: 'hit' | 'miss' | undefined
  readonly bytes: number
}

interface Client {
  readonly address: string
  readonly listener: 'cache' | 'registry'
  readonly product: string
  version: string | undefined
  requests: number
  hits: number
  misses: number
  bytes: number
  /** Wall clock ms. */
  readonly firstSeen: number
  lastSeen: number
  /** Holds the registries from which it got content by GET, or tried to. */
  readonly pulled: Set<string>
  /** Maps registries to the time of the first HEAD of a tag that was answered, monotonic ms. */
  readonly headed: Map<string, number>
  /** Is true for a client that was forgotten to make room. */
  isForgotten: boolean
}

/** Limits the clients; the least recently seen ones are forgotten. */
const maxClients = 200
/** Limits the registries that are remembered of a client. */
const maxRegistries = 50
/** Limits the characters of a host name. */
const maxHostLength = 253
/** Limits the characters of a product and of a version. */
const maxProductLength = 40
/** Sets the time in which the GET of a pull follows its HEAD, ms. */
const pullMs = 10_000
const maxFileBytes = 16 * 1024 * 1024
/** Matches the engines that ask for a tag by HEAD before they pull it. */
const engine = /^(?:containerd|docker|buildkit|nerdctl)$/i

/** Remembers the clients that were seen, across restarts. With a damaged file it starts with none. */
export class SeenClients {
  readonly #clock: Pick<Clock, 'wall' | 'monotonic'>
  readonly #clients = new Map<string, Client>()
  readonly #byIdentity = new WeakMap<ClientIdentity, Client>()
  #isSaved = true

  constructor(clock: Pick<Clock, 'wall' | 'monotonic'>) {
    this.#clock = clock
  }

  record(identity: ClientIdentity, request: ClientRequest): void {
    const known = this.#byIdentity.get(identity)
    const client = known === undefined || known.isForgotten ? this.#find(identity, request.listener) : known
    client.requests += 1
    client.bytes += request.bytes
    if (request.result === 'hit') client.hits += 1
    if (request.result === 'miss') client.misses += 1
    client.lastSeen = this.#clock.wall()
    this.#isSaved = false
    const { registry, kind } = request
    if (registry === undefined || kind === 'other' || client.pulled.has(registry)) return
    if (!request.isHead) {
      client.headed.delete(registry)
      if (client.pulled.size < maxRegistries && registry.length <= maxHostLength)
        client.pulled.add(cutText(registry, maxHostLength))
    } else if (request.byTag && request.isSuccess && client.headed.size < maxRegistries && !client.headed.has(registry))
      client.headed.set(cutText(registry, maxHostLength), this.#clock.monotonic())
  }

  /** Lists the clients, the most recently seen first. */
  list(): ClientReport[] {
    const before = this.#clock.monotonic() - pullMs
    return this.#sorted().map((client) => {
      const { address, listener, product, version, requests, hits, misses, bytes, firstSeen, lastSeen } = client
      const headOnly = engine.test(product) ? [...client.headed].filter(([, at]) => at <= before) : []
      return {
        address,
        listener,
        product,
        ...(version !== undefined && { version }),
        requests,
        hits,
        misses,
        bytes,
        firstSeen: new Date(firstSeen).toISOString(),
        lastSeen: new Date(lastSeen).toISOString(),
        headOnly: headOnly.map(([registry]) => registry),
      }
    })
  }

  async load(path: string): Promise<void> {
    const { clients } = (await readJsonFile(path, maxFileBytes)) ?? {}
    if (!Array.isArray(clients)) return
    for (const saved of (clients as unknown[]).slice(0, maxClients)) {
      const client = parseClient(saved)
      if (client) this.#clients.set(toKey(client), client)
    }
  }

  /** Writes the clients to a file when a request came since the last time. */
  async save(path: string): Promise<void> {
    if (this.#isSaved) return
    this.#isSaved = true
    const clients = this.#sorted().map((client) => ({
      ...client,
      pulled: [...client.pulled],
      headed: [...client.headed.keys()],
      isForgotten: undefined,
    }))
    try {
      await writeFileAtomic(path, JSON.stringify({ clients }))
    } catch (error) {
      this.#isSaved = false
      throw error
    }
  }

  #find(identity: ClientIdentity, listener: 'cache' | 'registry'): Client {
    const { address, agent = '' } = identity
    const { product, version } = parseProduct(agent)
    const key = toKey({ listener, address, product })
    let client = this.#clients.get(key)
    if (!client) {
      if (this.#clients.size >= maxClients) this.#forgetOldest()
      this.#clients.set(key, (client = createClient(listener, address, product, this.#clock.wall())))
    }
    client.version = version ?? client.version
    this.#byIdentity.set(identity, client)
    return client
  }

  #forgetOldest(): void {
    const oldest = this.#sorted().at(-1)!
    oldest.isForgotten = true
    this.#clients.delete(toKey(oldest))
  }

  #sorted(): Client[] {
    return [...this.#clients.values()].toSorted((one, other) => other.lastSeen - one.lastSeen)
  }
}

function createClient(listener: 'cache' | 'registry', address: string, product: string, now: number): Client {
  const counts = { requests: 0, hits: 0, misses: 0, bytes: 0, firstSeen: now, lastSeen: now }
  const registries = { pulled: new Set<string>(), headed: new Map<string, number>() }
  return { address, listener, product, version: undefined, ...counts, ...registries, isForgotten: false }
}

function toKey({ listener, address, product }: Pick<Client, 'listener' | 'address' | 'product'>): string {
  return `${listener} ${address} ${product}`
}

/** Parses the first product of a user agent, without a build: `docker` and `20.10.24` of `docker/20.10.24+dfsg1 go/go1.19.8 …`. */
function parseProduct(agent: string): { product: string; version: string | undefined } {
  const [first = ''] = agent.trim().split(/\s/, 1)
  const [, product, version] = /^([^/]+)\/v?([\w.-]+)?/.exec(first) ?? []
  return { product: cleanName(product ?? first) ?? 'unknown', version: cleanName(version ?? '') }
}

/** Cuts a text of a client and replaces its control characters; undefined for an empty one. */
function cleanName(text: string): string | undefined {
  return text === '' ? undefined : text.slice(0, maxProductLength).replaceAll(/[^\x21-\x7E]/g, '?')
}

function parseClient(saved: unknown): Client | undefined {
  if (!isObject(saved)) return undefined
  const { address, listener, product, version, pulled, headed } = saved
  if (typeof address !== 'string' || typeof product !== 'string' || !isCount(saved['firstSeen'])) return undefined
  if (listener !== 'cache' && listener !== 'registry') return undefined
  const client = createClient(listener, address, product, saved['firstSeen'])
  for (const name of ['requests', 'hits', 'misses', 'bytes', 'lastSeen'] as const) {
    const value = saved[name]
    if (isCount(value)) client[name] = value
  }
  if (typeof version === 'string') client.version = version
  for (const registry of parseNames(pulled)) client.pulled.add(registry)
  // A GET that belongs to these requests would have come long ago.
  for (const registry of parseNames(headed)) client.headed.set(registry, -Infinity)
  return client
}

function parseNames(value: unknown): string[] {
  const names = Array.isArray(value) ? (value as unknown[]) : []
  return names.filter((name): name is string => typeof name === 'string').slice(0, maxRegistries)
}

/** Checks a number of the file, which may also be a time: `Date` accepts no larger one. */
function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && value <= 8.64e15
}
