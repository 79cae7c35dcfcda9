import { lookup } from 'node:dns'
import type { Slots } from '../lib/async.ts'
import type { Logger } from '../lib/logger.ts'
import type { RunCommand } from '../lib/process.ts'
import { type Clock, systemClock } from '../lib/time.ts'
import { stripMediaType, maxManifestBytes, manifestAccept } from '../oci/content.ts'
import { parseDigest, formatReference } from '../oci/reference.ts'
import { parseNextPage } from '../oci/headers.ts'
import type { Access, Identity } from '../oci/registry.ts'
import { createAuthorizer, createRedirectTargets } from './auth.ts'
import { getContentEncoding, readBudgetedBody, parseLength, planBlob, readBlob } from './body.ts'
import { createCredentials, getCredentialHost, type CredentialsSource } from './credentials.ts'
import { createCooldown, LimitedError, toUpstreamError } from './failures.ts'
import { type Identify, parseSecrets, getSecrets } from './identity.ts'
import { readProxies } from './proxy.ts'
import { spendRateLimit, updateRateLimit } from './rate-limit.ts'
import { createCircuit, withRetries } from './retry.ts'
import { createTokenCache } from './tokens.ts'
import { type TransportResponse, createTransport, getTrustedCertificates } from './transport.ts'
import { createAddressGuard, type LookupAll } from './trust.ts'
import type { ConnectionPool } from './undici.ts'
import {
  type UpstreamCallOptions,
  type FetchedList,
  type RateLimit,
  type Upstream,
  UpstreamError,
  type UpstreamHealth,
} from './upstream.ts'

/** Allows large lists, because some registries send all tags of a repository in one page, with details of each image. */
const maxTagsListBytes = 16 * 1024 * 1024
/**
 * Lists the statuses of registries without the referrers API, in addition to 404: they take its path for a bad or an unknown one.
 */
const noReferrersStatuses = [400, 405, 501]

/** Describes an upstream with open connections. */
export interface HttpUpstream extends Upstream {
  /** Returns true if no request waits or runs, and no body arrives. */
  isIdle(): boolean
  /** Ends every connection; requests under way fail. */
  close(): Promise<void>
}

export type HttpUpstreamOptions = UpstreamClientOptions

/**
 * Opens a registry over HTTP. Throws a MirrorError for a CA or a proxy that cannot be used.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pull
 */
export function createHttpUpstream(options: HttpUpstreamOptions): HttpUpstream {
  const { host } = options
  const client = createUpstreamClient(options)

  function fetchList(
    request: Pick<UpstreamRequest, 'name' | 'path' | 'meansAbsent'>,
    { accept, limit }: { readonly accept: string; readonly limit: number },
    options: UpstreamCallOptions,
  ): Promise<FetchedList> {
    const asked: UpstreamRequest = { ...options, ...request, method: 'GET', headers: { accept } }
    return client.request(asked, async ({ response, identity }) => ({
      ...(await readBudgetedBody(response, limit, host)),
      next: parseNextPage(response.header('link')),
      filtersApplied: response.header('oci-filters-applied'),
      identity,
    }))
  }

  return {
    host,
    identity: (access) => client.identity(access),
    health: () => client.health(),
    isIdle: () => client.isIdle(),
    close: () => client.close(),

    resolve(name, reference, options) {
      const path = `manifests/${formatReference(reference)}`
      const headers = { accept: manifestAccept }
      return client.request({ ...options, method: 'HEAD', name, path, headers }, ({ response, identity }) => {
        response.discard()
        return {
          digest: parseDigest(response.header('docker-content-digest') ?? ''),
          mediaType: stripMediaType(response.header('content-type') ?? ''),
          size: getSize(response),
          identity,
        }
      })
    },

    manifest(name, reference, options) {
      const path = `manifests/${formatReference(reference)}`
      const headers = { accept: manifestAccept }
      return client.request({ ...options, method: 'GET', name, path, headers }, async ({ response, identity }) => ({
        digest: parseDigest(response.header('docker-content-digest') ?? ''),
        mediaType: stripMediaType(response.header('content-type') ?? ''),
        ...(await readBudgetedBody(response, maxManifestBytes, host)),
        identity,
      }))
    },

    statBlob(name, digest, options) {
      return client.request({ ...options, method: 'HEAD', name, path: `blobs/${digest}` }, ({ response, identity }) => {
        response.discard()
        return { size: getSize(response), identity }
      })
    },

    async blob(name, digest, { from, to, expectedSize, ...options }) {
      // Starts at the registry every time, because the links that it redirects to expire.
      const open = (start: number, end: number | undefined) => {
        const isWhole = start === 0 && end === undefined
        const headers: Record<string, string> = isWhole ? {} : { range: `bytes=${start}-${end ?? ''}` }
        return client.request(
          { ...options, method: 'GET', name, path: `blobs/${digest}`, headers, pool: 'blobs' },
          ({ response, identity }) => ({ response, identity, plan: planBlob(response, from, expectedSize, host) }),
        )
      }
      let opened = await open(from, to)
      if (!opened.plan) {
        opened.response.discard()
        opened = await open(0, undefined)
      }
      const { response, identity, plan } = opened
      if (!plan) throw new Error('A response to a request without a range cannot be a part.')
      const isPart = to !== undefined && response.status === 206
      return { size: plan.size, isPart, identity, body: readBlob(response, plan, host) }
    },

    tags(name, query, options) {
      const form = { accept: 'application/json', limit: maxTagsListBytes }
      return fetchList({ name, path: withQuery('tags/list', query) }, form, options)
    },

    async referrers(name, digest, query, options) {
      const path = withQuery(`referrers/${digest}`, query)
      const form = { accept: manifestAccept, limit: maxManifestBytes }
      try {
        return await fetchList({ name, path, meansAbsent: noReferrersStatuses }, form, options)
      } catch (error) {
        if (error instanceof UpstreamError && error.failure === 'absent') return undefined
        throw error
      }
    },
  }
}

/** Returns the length that a GET would have; undefined when the body would be encoded. */
function getSize(response: TransportResponse): number | undefined {
  return getContentEncoding(response) === undefined ? parseLength(response.header('content-length')) : undefined
}

function withQuery(path: string, query: string): string {
  return query === '' ? path : `${path}?${query}`
}

/**
 * Creates the conversion of repository names for an upstream that stores its repositories below a path; without a path both names are
 * the same.
 */
function createPrefix(path: string | undefined) {
  // Matches other repositories as well, but not within a URL, where a path of the same name may mean anything.
  const others =
    path === undefined ? undefined : new RegExp(`(?<![\\w./-])${path.replaceAll('.', '\\.')}/(?=[a-z0-9])`, 'g')
  return {
    /** Converts a client's name to the upstream's. */
    add: (name: string) => (others ? `${path}/${name}` : name),
    /** Removes the path from a message of the upstream about a repository. */
    hide: (text: string, name: string) =>
      others ? text.replaceAll(`${path}/${name}`, name).replaceAll(others, '') : text,
  }
}

interface UpstreamClientOptions {
  /** Holds the name that clients use. */
  readonly host: string
  /** Holds the base URL, without `/v2/`. */
  readonly url: string
  /** Holds the path below which the upstream stores its repositories: `/v2/<prefix>/<name>`. No result or message shows it. */
  readonly prefix?: string | undefined
  readonly credentials: CredentialsSource
  readonly identify: Identify
  /** Lists additional hosts that may receive the credential. */
  readonly tokenHosts: readonly string[]
  /** Holds the PEM text of an additional CA to trust. */
  readonly ca: string | undefined
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  /** Is true if the upstream may have a private address, because the user configured it by name. */
  readonly allowPrivate: boolean
  /** Holds the environment, for proxies and passwords. */
  readonly env: Readonly<Record<string, string | undefined>>
  /** Locates Docker's config.json; see `dockerConfigPath`. */
  readonly dockerConfig: string
  readonly userAgent: string
  /** Is called with the time until the response headers of each request to the registry, ms; not for tokens. */
  readonly onResponse?: ((milliseconds: number) => void) | undefined
  /** Limits the concurrent requests of all upstreams together; no limit when absent. */
  readonly requests?: Slots | undefined
  /** Is true if connections are reused; default true. */
  readonly keepAlive?: boolean | undefined
  readonly runCommand: RunCommand
  readonly logger: Logger
  readonly clock?: Clock
  readonly random?: () => number
  readonly lookup?: LookupAll
}

interface UpstreamRequest extends UpstreamCallOptions {
  readonly method: 'GET' | 'HEAD'
  readonly name: string
  /** Holds the path below `/v2/<name>/`. */
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  readonly pool?: ConnectionPool
  /** Lists statuses that mean the same as a 404 for this request. */
  readonly meansAbsent?: readonly number[]
}

interface UpstreamResponse {
  readonly response: TransportResponse
  readonly identity: Identity
}

/**
 * Opens a client of one upstream, with authorization, retries, rate limits and the circuit breaker. Throws a MirrorError for a CA or a
 * proxy that cannot be used.
 */
function createUpstreamClient(options: UpstreamClientOptions) {
  const { host, identify, logger, clock = systemClock, random = Math.random } = options
  const url = new URL(options.url)
  const base = `${url.origin}${url.pathname.replace(/\/+$/, '')}/v2`
  const transportOptions = {
    ...options,
    guard: createAddressGuard({ lookup, ...options, url }),
    certificates: options.ca === undefined ? undefined : getTrustedCertificates(options.ca, host),
    proxies: readProxies(options.env),
    clock,
  }
  const transport = createTransport(transportOptions)
  const targets = createRedirectTargets(transportOptions)
  const credentials = createCredentials({
    ...options,
    host: getCredentialHost(host, options),
    source: options.credentials,
    clock,
  })
  const tokens = createTokenCache(host, { transport, clock })
  const ping = () => transport.send({ method: 'GET', url: new URL(`${base}/`), headers: {}, pool: 'metadata' })
  const authorizer = createAuthorizer({ ...options, url, credentials, tokens, clock, ping })
  const circuit = createCircuit(host, clock, logger)
  const cooldown = createCooldown(host, clock)
  let rateLimit: RateLimit | undefined
  const prefix = createPrefix(options.prefix)

  const findCredential = async (access: Access) => (access === 'credentialed' ? credentials.find() : undefined)

  async function attempt<T>(
    request: UpstreamRequest,
    credential: Awaited<ReturnType<typeof findCredential>>,
    read: (reply: UpstreamResponse) => Promise<T> | T,
  ): Promise<T> {
    const { method, name, path, headers = {}, pool = 'metadata', signal } = request
    const spelled = prefix.add(name)
    const target = new URL(`${base}/${spelled}/${path}`)
    const secrets = getSecrets(credential)
    const { response, identity } = await authorizer.send(
      { name: spelled, credential, signal },
      async (authorization) => {
        if (authorization !== undefined) secrets.push(...parseSecrets(authorization))
        const all = authorization === undefined ? headers : { ...headers, authorization }
        const begun = clock.monotonic()
        const response = await transport.send({
          method,
          url: target,
          headers: all,
          pool,
          repository: name,
          signal,
          targets,
        })
        options.onResponse?.(clock.monotonic() - begun)
        return response
      },
    )
    rateLimit = updateRateLimit(rateLimit, response, { repository: name, identity, wall: clock.wall() })
    const isWanted = response.status === 200 || (response.status === 206 && headers['range'] !== undefined)
    if (!isWanted) throw await toUpstreamError(host, response, clock, { meansAbsent: request.meansAbsent, secrets })
    return read({ response, identity })
  }

  async function recordLimit<T>(identity: Identity, isExtra: boolean, answered: Promise<T>): Promise<T> {
    try {
      return await answered
    } catch (error) {
      if (error instanceof LimitedError) {
        rateLimit = spendRateLimit(rateLimit, error.limit, clock.wall())
        if (!isExtra) cooldown.record(identity, error.limit)
      }
      throw error
    }
  }

  return {
    /** Repeats the request until `read` accepts a 200 (or a 206 to a range). Throws an UpstreamError, or the signal's reason. */
    async request<T>(request: UpstreamRequest, read: (reply: UpstreamResponse) => Promise<T> | T): Promise<T> {
      const { method, name, path, signal, isExtra = false, isBestEffort = false } = request
      const credential = await findCredential(request.access)
      const identity = identify(credential, host)
      const spendsQuota = method === 'GET' && path.startsWith('manifests/')
      const source = { repository: name, request: `${identity} ${method} ${name}/${path}` }
      const once = () => {
        cooldown.check(identity, spendsQuota)
        const send = () => recordLimit(identity, isExtra, attempt(request, credential, read))
        return isBestEffort ? send() : circuit.run(source, send)
      }
      try {
        return isBestEffort ? await once() : await withRetries(once, { clock, random, signal })
      } catch (error) {
        if (error instanceof UpstreamError) {
          error.message = prefix.hide(error.message, name)
          const fields = { upstream: host, repository: name, method, path, reason: error.message }
          logger.debug(fields, 'an upstream request failed')
        }
        throw error
      }
    },
    identity: async (access: Access): Promise<Identity> => identify(await findCredential(access), host),
    health: (): UpstreamHealth => ({ state: circuit.state, rateLimit }),
    isIdle: () => transport.isIdle(),
    close: async () => void (await Promise.all([transport.close(), targets.close()])),
  }
}
