import { lookup } from 'node:dns'
import { homedir } from 'node:os'
import type { StatusReport, UpstreamReport } from '../admin/api.ts'
import type { Config, UpstreamConfig } from '../config/config.ts'
import { readAuthorities } from '../daemon/start-errors.ts'
import { MirrorError } from '../lib/errors.ts'
import { runCommand } from '../lib/process.ts'
import { systemClock } from '../lib/time.ts'
import { formatDuration } from '../lib/units.ts'
import { parseChallenges } from '../oci/headers.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import { createCredentials, getCredentialHost } from '../upstream/credentials.ts'
import { getDockerConfigPath } from '../upstream/docker-credentials.ts'
import { CredentialError, type CredentialFault } from '../upstream/identity.ts'
import { readProxies } from '../upstream/proxy.ts'
import { createTransport, getTrustedCertificates, type Transport } from '../upstream/transport.ts'
import { createAddressGuard } from '../upstream/trust.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { type DoctorContext, type Report, type Task, toOk, toSkipped, type UpstreamProbe } from './context.ts'

const timeouts = { connect: 3000, headers: 3000, idle: 3000 }
const slowMs = 2000
/** Sets the share of a quota below which it is nearly used up. */
const lowQuota = 0.1

/** Lists the checks of the upstreams: the configured ones and those that clients have used. */
export function listUpstreamTasks(context: DoctorContext): Task[] {
  return [
    {
      ids: ['reachable', 'tls', 'proxy', 'token', 'time', 'quota'].map((name) => `upstreams.${name}`),
      run: (report) => checkUpstreams(context, report),
    },
    { ids: ['upstreams.credential'], run: (report) => checkCredentials(context, report) },
  ]
}

/** Sends `GET /v2/` to each upstream. */
export async function probeUpstreams(context: DoctorContext): Promise<readonly UpstreamProbe[]> {
  const [config, status] = await Promise.all([context.config, context.status])
  if (isOffline(config, status)) return []
  const authorities = readAuthorities(config.upstreams)
  return Promise.all(
    listHosts(config, status).map((host) =>
      probeUpstream(host, config.upstreams[host], authorities.get(host), context),
    ),
  )
}

function listHosts({ upstreams, defaultUpstream }: Config, status: StatusReport | undefined): string[] {
  const hosts = new Set([...Object.keys(upstreams), ...Object.keys(status?.upstreams ?? {})])
  return hosts.size === 0 ? [defaultUpstream] : [...hosts]
}

async function probeUpstream(
  host: string,
  settings: UpstreamConfig | undefined,
  ca: string | undefined,
  { surroundings, version, signal }: DoctorContext,
): Promise<UpstreamProbe> {
  const url = new URL(settings?.url ?? toRegistryUrl(host))
  const tokenHosts = settings?.tokenHosts ?? []
  const transport = createTransport({
    host,
    timeouts,
    userAgent: `dev-mirror/${version}`,
    guard: createAddressGuard({ host, url, allowPrivate: settings !== undefined, tokenHosts, lookup }),
    proxies: readProxies(surroundings.env),
    certificates: ca === undefined ? undefined : getTrustedCertificates(ca, host),
    keepAlive: false,
  })
  try {
    const begin = performance.now()
    const response = await transport.send({
      method: 'GET',
      url: new URL(`${url.origin}${url.pathname.replace(/\/+$/, '')}/v2/`),
      headers: {},
      pool: 'metadata',
      signal,
    })
    const ms = performance.now() - begin
    response.discard()
    const date = Date.parse(response.header('date') ?? '')
    const challenge = response.header('www-authenticate')
    return {
      host,
      status: response.status,
      ms,
      ...(!Number.isNaN(date) && { skewMs: Date.now() - date }),
      ...(challenge !== undefined && (await probeToken(challenge, transport, signal))),
    }
  } catch (error) {
    if (!(error instanceof UpstreamError)) throw error
    return { host, failure: error.message }
  } finally {
    await transport.close()
  }
}

/** Asks the token service for a token without a scope, which it grants or refuses to anyone. */
async function probeToken(
  header: string,
  transport: Transport,
  signal: AbortSignal,
): Promise<Pick<UpstreamProbe, 'token'>> {
  const challenge = parseChallenges(header).find(({ scheme }) => scheme.toLowerCase() === 'bearer')
  const realm = challenge?.parameters.get('realm')
  if (realm === undefined || !URL.canParse(realm)) return {}
  const url = new URL(realm)
  const service = challenge?.parameters.get('service')
  if (service !== undefined) url.searchParams.set('service', service)
  try {
    const response = await transport.send({ method: 'GET', url, headers: {}, pool: 'metadata', signal })
    response.discard()
    return { token: { realm: url.host, status: response.status } }
  } catch (error) {
    if (!(error instanceof UpstreamError)) throw error
    return { token: { realm: url.host, failure: error.message } }
  }
}

/** Reports whether upstreams are not contacted: by the decision of the running mirror, or by mirror.yaml. */
function isOffline({ cache }: Config, status: StatusReport | undefined): boolean {
  return status?.offline?.active ?? cache.offline
}

async function checkUpstreams(context: DoctorContext, report: Report): Promise<void> {
  const [config, status] = await Promise.all([context.config, context.status])
  if (isOffline(config, status)) return report(toSkipped('upstreams.reachable', 'the mirror is offline'))
  for (const probe of await context.probeUpstreams()) reportProbe(probe, status?.upstreams[probe.host], report)
}

function reportProbe(probe: UpstreamProbe, known: UpstreamReport | undefined, report: Report): void {
  const { host, failure, status = 0, ms = 0, token } = probe
  if (failure !== undefined) return reportFailure(host, failure, report)
  report(toOk('upstreams.tls', undefined, host))
  report(toOk('upstreams.proxy', undefined, host))
  const lastError = known?.state === 'ok' ? undefined : known?.lastError
  if (status >= 500)
    report({
      id: 'upstreams.reachable',
      subject: host,
      state: 'fail',
      saw: `${host} answers with status ${status}.`,
      advice: 'Wait: the registry itself has a problem. Cached images are served meanwhile.',
    })
  else if (lastError !== undefined)
    report({
      id: 'upstreams.reachable',
      subject: host,
      state: 'warn',
      saw: `${host} answers now, but the last request of the mirror failed: ${lastError.message}`,
      advice: 'The mirror tries again by itself. See: mirror logs',
    })
  else report(toOk('upstreams.reachable', `${host} answers.`, host))
  reportToken(host, token, report)
  const slow = `${host} took ${formatDuration(Math.round(ms))} to answer.`
  if (ms > slowMs)
    report({
      id: 'upstreams.time',
      subject: host,
      state: 'warn',
      saw: slow,
      advice: 'Check the network, the proxy and DNS of this machine.',
    })
  else report(toOk('upstreams.time', slow, host))
  reportQuota(host, known, report)
}

function reportFailure(host: string, failure: string, report: Report): void {
  const name = /\bproxy\b/i.test(failure) ? 'proxy' : /certificate|TLS/.test(failure) ? 'tls' : 'reachable'
  const advice = {
    proxy: 'Correct https_proxy, http_proxy or no_proxy, then: mirror down && mirror up',
    tls: `Set upstreams."${host}".ca in mirror.yaml to the CA (PEM), then: mirror up`,
    reachable: 'Check the network and DNS of this machine, and whether the registry is up.',
  }
  report({ id: `upstreams.${name}`, subject: host, state: 'fail', saw: failure, advice: advice[name] })
}

function reportToken(host: string, token: UpstreamProbe['token'], report: Report): void {
  const id = 'upstreams.token'
  if (token === undefined) return report(toOk(id, `${host} needs no token.`, host))
  const { realm, failure, status = 0 } = token
  if (failure === undefined && status < 500) return report(toOk(id, `${realm} answers.`, host))
  report({
    id,
    subject: host,
    state: 'fail',
    saw: failure ?? `The token service ${realm} answers with status ${status}.`,
    advice: `Check that this machine reaches ${realm}.`,
  })
}

function reportQuota(host: string, known: UpstreamReport | undefined, report: Report): void {
  const id = 'upstreams.quota'
  const limited = known?.lastError?.retryAfterSeconds
  const { rateLimit } = known ?? {}
  const login = { command: host === 'docker.io' ? 'docker login' : `docker login ${host}`, isOwn: false }
  if (limited !== undefined)
    return report({
      id,
      subject: host,
      state: 'fail',
      saw: `${host} limits the rate of pulls for the next ${formatDuration(limited * 1000)}.`,
      fix: login,
    })
  if (rateLimit === undefined) return report(toOk(id, undefined, host))
  if ('unlimited' in rateLimit) return report(toOk(id, `${host} does not limit the pulls of this account.`, host))
  const { limit, remaining, windowSeconds } = rateLimit
  const saw = `${host} grants ${remaining} more of ${limit} pulls in ${formatDuration(windowSeconds * 1000)}.`
  if (remaining > limit * lowQuota) return report(toOk(id, saw, host))
  report({ id, subject: host, state: remaining === 0 ? 'fail' : 'warn', saw, fix: login })
}

/** Reads the credential of each upstream, as the mirror does. */
async function checkCredentials(context: DoctorContext, report: Report): Promise<void> {
  const id = 'upstreams.credential'
  const [config, status, found] = await Promise.all([context.config, context.status, context.found])
  const { env } = context.surroundings
  await Promise.all(
    listHosts(config, status).map(async (host) => {
      const exported = status?.upstreams[host]?.credentials
      if (exported?.state === 'expired')
        return report({
          id,
          subject: host,
          state: 'fail',
          saw: `The credential for ${host} in the container has expired.`,
          fix: { command: 'mirror credentials refresh', isOwn: true },
        })
      if (exported !== undefined || found?.running.container) return report(toOk(id, undefined, host))
      const settings = config.upstreams[host]
      const source = settings?.credentials ?? { from: 'docker-config' as const }
      const credentials = createCredentials({
        host: getCredentialHost(host, settings ?? {}),
        source,
        dockerConfig: getDockerConfigPath(env),
        env,
        runCommand,
        clock: systemClock,
      })
      try {
        const credential = await credentials.find()
        const kind = credential === undefined ? 'No credential is configured' : 'The credential is readable'
        report(toOk(id, `${kind}; ${host} is asked ${credential === undefined ? 'anonymously' : 'with it'}.`, host))
      } catch (error) {
        if (!(error instanceof UpstreamError) && !(error instanceof MirrorError)) throw error
        const fault = error instanceof CredentialError ? error.fault : undefined
        const advice = fault && adviseOnCredential(fault, toHomePath(getDockerConfigPath(env)))
        report({ id, subject: host, state: 'fail', saw: error.message, ...(advice !== undefined && { advice }) })
      }
    }),
  )
}

/** Advises on what `docker login` cannot mend: it reads the same file, and stores by the same helper. */
function adviseOnCredential(fault: CredentialFault, path: string): string {
  switch (fault.in) {
    case 'config':
      return `Correct ${path}, then run mirror doctor again.`
    case 'unreadable-config':
      return `Make ${path} readable for this user, then run mirror doctor again.`
    case 'missing-helper':
      return `Install ${fault.program}, or remove ${fault.key} from ${path}.`
    case 'failed-helper':
      return `See why the helper fails: ${fault.program} list`
  }
}

function toHomePath(path: string): string {
  const home = `${homedir()}/`
  return path.startsWith(home) ? `~/${path.slice(home.length)}` : path
}
