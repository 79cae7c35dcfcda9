import { lookup } from 'node:dns'
import type { StatusReport } from '../admin/api.ts'
import type { Config, UpstreamConfig } from '../config/config.ts'
import { readAuthorities } from '../daemon/start-errors.ts'
import { MirrorError } from '../lib/errors.ts'
import { parseChallenges } from '../oci/headers.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import type { Credential } from '../upstream/identity.ts'
import { readProxies } from '../upstream/proxy.ts'
import { createBasicAuthorization } from '../upstream/tokens.ts'
import { createTransport, getTrustedCertificates, type Transport } from '../upstream/transport.ts'
import { createAddressGuard, mayReceiveCredential } from '../upstream/trust.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { DoctorContext, UpstreamProbe } from './context.ts'

const timeouts = { connect: 2000, headers: 2500, idle: 2500 }

/** Sends `GET /v2/` to each upstream. */
export async function probeUpstreams(context: DoctorContext): Promise<readonly UpstreamProbe[]> {
  const [config, status] = await Promise.all([context.config, context.status])
  if (isOffline(config, status)) return []
  return Promise.all(listHosts(config, status).map((host) => probeUpstream(host, config.upstreams[host], context)))
}

/** Lists the configured upstreams and those that clients have used; the default one without any. */
export function listHosts({ upstreams, defaultUpstream }: Config, status: StatusReport | undefined): string[] {
  const hosts = new Set([...Object.keys(upstreams), ...Object.keys(status?.upstreams ?? {})])
  return hosts.size === 0 ? [defaultUpstream] : [...hosts]
}

/** Reports whether upstreams are not contacted: by the decision of the running mirror, or by mirror.yaml. */
export function isOffline({ cache }: Config, status: StatusReport | undefined): boolean {
  return status?.offline?.active ?? cache.offline
}

async function probeUpstream(
  host: string,
  settings: UpstreamConfig | undefined,
  context: DoctorContext,
): Promise<UpstreamProbe> {
  let open: OpenUpstream | undefined
  try {
    open = openUpstream(host, settings, context)
    const begin = performance.now()
    const response = await open.ping({})
    const ms = performance.now() - begin
    const date = Date.parse(response.header('date') ?? '')
    const challenge = readBearer(response.header('www-authenticate'))
    return {
      host,
      status: response.status,
      ms,
      isPlain: open.url.protocol === 'http:',
      ...(open.proxy !== undefined && { proxy: `The proxy ${open.proxy}` }),
      ...(!Number.isNaN(date) && { skewMs: Date.now() - date }),
      ...(challenge !== undefined && (await probeToken(challenge, open.transport, context.probeSignal))),
    }
  } catch (error) {
    if (context.probeSignal.aborted) {
      const failure = `${open?.name ?? host} did not answer in time.`
      return { host, failure, fault: toFault(failure) }
    }
    if (error instanceof UpstreamError) return { host, failure: error.message, fault: toFault(error.message) }
    // A file of certificates or a variable of a proxy that cannot be used, which keeps the mirror from starting, too.
    if (error instanceof MirrorError) {
      const [advice] = error.hints
      const fault = error.message.startsWith('The proxy in ') ? 'proxy' : 'tls'
      return { host, failure: error.message, fault, ...(advice !== undefined && { advice }) }
    }
    throw error
  } finally {
    await open?.transport.close()
  }
}

/** Names the check of a failure. A failure of TLS is one of the upstream also behind a proxy, which may have replaced the certificate. */
function toFault(failure: string): NonNullable<UpstreamProbe['fault']> {
  if (/ presented a certificate | TLS\b/.test(failure)) return 'tls'
  return /^The proxy |, through the proxy /.test(failure) ? 'proxy' : 'reachable'
}

interface OpenUpstream {
  /** Names the upstream, with the proxy through which it is asked. */
  readonly name: string
  readonly proxy: string | undefined
  readonly url: URL
  readonly transport: Transport
  readonly tokenHosts: readonly string[]
  /** Sends `GET /v2/` with these headers. */
  ping(headers: Readonly<Record<string, string>>): ReturnType<Transport['send']>
}

function openUpstream(
  host: string,
  settings: UpstreamConfig | undefined,
  { surroundings, version, probeSignal }: DoctorContext,
): OpenUpstream {
  const url = new URL(settings?.url ?? toRegistryUrl(host))
  const tokenHosts = settings?.tokenHosts ?? []
  const ca = settings && readAuthorities({ [host]: settings }).get(host)
  const proxies = readProxies(surroundings.env)
  const proxy = proxies.find(url)?.name
  const transport = createTransport({
    host,
    timeouts,
    userAgent: `dev-mirror/${version}`,
    guard: createAddressGuard({ host, url, allowPrivate: settings !== undefined, tokenHosts, lookup }),
    proxies,
    certificates: ca === undefined ? undefined : getTrustedCertificates(ca, host),
    keepAlive: false,
  })
  const base = new URL(`${url.origin}${url.pathname.replace(/\/+$/, '')}/v2/`)
  return {
    name: proxy === undefined ? host : `${host}, through the proxy ${proxy},`,
    proxy,
    url,
    transport,
    tokenHosts,
    async ping(headers) {
      const response = await transport.send({
        method: 'GET',
        url: base,
        headers,
        pool: 'metadata',
        signal: probeSignal,
      })
      response.discard()
      return response
    },
  }
}

/** Describes the token service that a challenge names. */
interface TokenService {
  readonly realm: URL
  readonly service: string | undefined
}

function readBearer(header: string | undefined): TokenService | undefined {
  const challenge = parseChallenges(header ?? '').find(({ scheme }) => scheme.toLowerCase() === 'bearer')
  const realm = challenge?.parameters.get('realm')
  if (realm === undefined || !URL.canParse(realm)) return undefined
  return { realm: new URL(realm), service: challenge?.parameters.get('service') }
}

/** Asks the token service for a token without a scope, which it grants or refuses to anyone. */
async function probeToken(
  { realm, service }: TokenService,
  transport: Transport,
  signal: AbortSignal,
): Promise<Pick<UpstreamProbe, 'token'>> {
  const url = new URL(realm)
  if (service !== undefined) url.searchParams.set('service', service)
  try {
    const response = await transport.send({ method: 'GET', url, headers: {}, pool: 'metadata', signal })
    response.discard()
    return { token: { realm: url.host, status: response.status } }
  } catch (error) {
    if (signal.aborted) return { token: { realm: url.host, failure: `${url.host} did not answer in time.` } }
    if (!(error instanceof UpstreamError)) throw error
    return { token: { realm: url.host, failure: error.message } }
  }
}

/** Distinguishes what an upstream does with a credential; `unknown` when it does not answer, or asks for none. */
export type CredentialTest =
  | { readonly result: 'accepted' | 'unknown' }
  | { readonly result: 'refused'; readonly by: string; readonly status: number }
  | { readonly result: 'untrusted'; readonly realm: string }

/** Shows the upstream its credential, as `docker login` does: the token service without a scope, or `/v2/` itself. */
export async function testCredential(
  host: string,
  settings: UpstreamConfig | undefined,
  credential: Credential,
  context: DoctorContext,
): Promise<CredentialTest> {
  const upstream = openUpstream(host, settings, context)
  try {
    const first = await upstream.ping({})
    if (first.status !== 401) return { result: 'unknown' }
    const token = readBearer(first.header('www-authenticate'))
    if (credential.kind === 'registry-token' || token === undefined) {
      if (credential.kind === 'identity-token') return { result: 'unknown' }
      const authorization =
        credential.kind === 'registry-token'
          ? `Bearer ${credential.token}`
          : createBasicAuthorization(credential.username, credential.password)
      const { status } = await upstream.ping({ authorization })
      return status === 401 ? { result: 'refused', by: host, status } : { result: 'accepted' }
    }
    const { realm } = token
    if (!mayReceiveCredential(realm, upstream.url, upstream.tokenHosts))
      return { result: 'untrusted', realm: realm.host }
    const response = await upstream.transport.send(createLogin(token, credential, context.probeSignal))
    response.discard()
    const { status } = response
    // Servers differ in the status for a refused refresh token: RFC 6749 §5.2 says 400.
    const isRefused = status === 401 || (status === 400 && credential.kind === 'identity-token')
    return isRefused ? { result: 'refused', by: realm.host, status } : { result: 'accepted' }
  } catch (error) {
    // The other checks of this upstream name what failed.
    if (context.probeSignal.aborted || error instanceof UpstreamError || error instanceof MirrorError)
      return { result: 'unknown' }
    throw error
  } finally {
    await upstream.transport.close()
  }
}

function createLogin(
  { realm, service }: TokenService,
  credential: Exclude<Credential, { readonly kind: 'registry-token' }>,
  signal: AbortSignal,
): Parameters<Transport['send']>[0] {
  const common = { pool: 'metadata', signal } as const
  if (credential.kind === 'identity-token') {
    const form = new URLSearchParams({
      grant_type: 'refresh_token',
      ...(service !== undefined && { service }),
      client_id: 'dev-mirror',
      refresh_token: credential.token,
    })
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    return { ...common, method: 'POST', url: realm, headers, body: form.toString() }
  }
  const url = new URL(realm)
  if (service !== undefined) url.searchParams.set('service', service)
  url.searchParams.set('account', credential.username)
  const authorization = createBasicAuthorization(credential.username, credential.password)
  return { ...common, method: 'GET', url, headers: { authorization } }
}
