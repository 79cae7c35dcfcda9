import { readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import type { StatusReport, UpstreamReport } from '../admin/api.ts'
import type { Config, UpstreamConfig } from '../config/config.ts'
import { MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { runCommand } from '../lib/process.ts'
import { systemClock } from '../lib/time.ts'
import { formatDuration } from '../lib/units.ts'
import { createCredentials, type CredentialsSource, getCredentialHost } from '../upstream/credentials.ts'
import { getDockerConfigPath } from '../upstream/docker-credentials.ts'
import { CredentialError, type CredentialFault, type Credentials } from '../upstream/identity.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { type DoctorContext, type Outcome, type Report, type Task, toOk, type UpstreamProbe } from './context.ts'
import { type CredentialTest, isOffline, listHosts, testCredential } from './probe.ts'
import { adviseOnConfig, planStart, toStartCommand } from './start-command.ts'

const slowMs = 2000
/** Sets the share of a quota below which it is nearly used up. */
const lowQuota = 0.1
const proxyVariables = ['https_proxy', 'HTTPS_PROXY', 'http_proxy', 'all_proxy', 'ALL_PROXY', 'no_proxy', 'NO_PROXY']

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

async function checkUpstreams(context: DoctorContext, report: Report): Promise<void> {
  const [config, status] = await Promise.all([context.config, context.status])
  if (isOffline(config, status)) return reportOffline(context, status, report)
  for (const probe of await context.probeUpstreams())
    await reportProbe(probe, { context, config, known: status?.upstreams[probe.host] }, report)
}

/** Reports that no upstream is contacted, and the way back: the switch of the running mirror, or mirror.yaml. */
async function reportOffline(context: DoctorContext, status: StatusReport | undefined, report: Report): Promise<void> {
  const isSwitched = status?.offline?.source === 'session'
  report({
    id: 'upstreams.reachable',
    state: 'warn',
    saw: `The mirror is offline${isSwitched ? ' until it restarts' : ' (cache.offline)'}: it contacts no upstream, and serves only what is cached.`,
    advice: isSwitched
      ? 'Choose "Go online" in the dashboard: mirror dashboard'
      : await adviseOnConfig(context, 'Remove offline: true below cache: in'),
  })
}

interface KnownUpstream {
  readonly context: DoctorContext
  readonly config: Config
  /** Holds what the running mirror knows of the upstream. */
  readonly known: UpstreamReport | undefined
}

async function reportProbe(probe: UpstreamProbe, upstream: KnownUpstream, report: Report): Promise<void> {
  const { host, failure, status = 0, ms = 0, token } = probe
  const { context, known } = upstream
  if (failure !== undefined) return reportFailure({ ...probe, failure }, upstream, report)
  if (probe.isPlain !== true) report(toOk('upstreams.tls', undefined, host))
  if (probe.proxy !== undefined) report(toOk('upstreams.proxy', `${probe.proxy} connects to ${host}.`, host))
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
      advice: (await adviseOnProxy(context)) ?? 'The mirror tries again by itself. See: mirror logs',
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
  await reportQuota(host, upstream, report)
}

async function reportFailure(
  { host, failure, fault = 'reachable', advice }: UpstreamProbe & { readonly failure: string },
  { context, config }: KnownUpstream,
  report: Report,
): Promise<void> {
  const advise = {
    reachable: async () => 'Check the network and DNS of this machine, and whether the registry is up.',
    proxy: () => adviseOnRefusal(failure, context),
    tls: () => adviseOnTls(host, failure, context, config.upstreams[host]),
  }
  report({
    id: `upstreams.${fault}`,
    subject: host,
    state: 'fail',
    saw: failure,
    advice: advice ?? (await advise[fault]()),
  })
}

async function adviseOnRefusal(failure: string, context: DoctorContext): Promise<string> {
  const { ports, otherFlags, forOwner } = await planStart(context)
  const again = forOwner(`mirror down && ${toStartCommand(ports, otherFlags)}`)
  if (failure.endsWith('(407).'))
    return `Write user name and password into https_proxy (http://USER:PASSWORD@HOST:PORT), then: ${again}`
  const isRefusal = / refuses to connect to /.test(failure)
  return isRefusal
    ? `Have this registry allowed by the proxy, or add it to no_proxy, then: ${again}`
    : `Correct https_proxy, http_proxy or no_proxy, then: ${again}`
}

/** Advises on a certificate. Only one of an unknown authority is a matter of the CA. */
async function adviseOnTls(
  host: string,
  failure: string,
  context: DoctorContext,
  settings: UpstreamConfig | undefined,
): Promise<string> {
  const key = `upstreams.${JSON.stringify(host)}`
  if (/ is not trusted /.test(failure)) return adviseOnConfig(context, `Set ${key}.ca to the file of the CA (PEM) in`)
  if (/ does not speak TLS /.test(failure)) return adviseOnConfig(context, `Begin ${key}.url with http:// in`)
  if (/ is not valid yet/.test(failure)) return 'Set the clock of this machine: sudo timedatectl set-ntp true'
  if (/ has expired /.test(failure))
    return `Have the certificate of ${host} renewed; check the clock of this machine: date`
  if (/ another host name /.test(failure) && settings?.url !== undefined)
    return adviseOnConfig(context, `Correct the host in ${key}.url in`)
  return `Check that no proxy or other server answers in place of ${host}.`
}

/** Advises to start the mirror again when it has other proxies than this shell, by which the upstream answers; undefined otherwise. */
async function adviseOnProxy(context: DoctorContext): Promise<string | undefined> {
  const mirror = await context.found
  if (mirror === undefined || mirror.running.container) return undefined
  const text = await ifVisible(readFile(`/proc/${mirror.running.pid}/environ`, 'utf8'))
  if (text === undefined) return undefined
  const variables = Object.fromEntries(text.split('\0').map((line) => line.split(/=(.*)/s, 2)))
  const { env } = context.surroundings
  const differing = proxyVariables.filter((name) => (variables[name] ?? '') !== (env[name] ?? ''))
  if (differing.length === 0) return undefined
  const { ports, otherFlags, forOwner } = await planStart(context)
  const again = forOwner(`mirror down && ${toStartCommand(ports, otherFlags)}`)
  return `The mirror has another ${differing.join(', ')} than this shell. To start it with those of this shell: ${again}`
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

async function reportQuota(host: string, upstream: KnownUpstream, report: Report): Promise<void> {
  const id = 'upstreams.quota'
  const { lastError, rateLimit } = upstream.known ?? {}
  // The mirror also waits after an outage, which is no limit.
  const limited = lastError?.failure === 'limited' ? lastError.retryAfterSeconds : undefined
  if (limited !== undefined)
    return report({
      id,
      subject: host,
      state: 'fail',
      saw: `${host} limits the rate of pulls for the next ${formatDuration(limited * 1000)}.`,
      ...(await planMorePulls(host, upstream)),
    })
  if (rateLimit === undefined) return report(toOk(id, undefined, host))
  if ('unlimited' in rateLimit) return report(toOk(id, `${host} does not limit the pulls of this account.`, host))
  const { limit, remaining, windowSeconds, at, resetsAt } = rateLimit
  const end = resetsAt === undefined ? Date.parse(at) + windowSeconds * 1000 : Date.parse(resetsAt)
  if (end <= Date.now()) return report(toOk(id, `The last quota that ${host} told has ended since.`, host))
  const reset = resetsAt === undefined ? '' : `, and resets in ${formatDuration(end - Date.now())}`
  const saw = `${host} grants ${remaining} more of ${limit} pulls in ${formatDuration(windowSeconds * 1000)}${reset}.`
  if (remaining > limit * lowQuota) return report(toOk(id, saw, host))
  const mend = await planMorePulls(host, upstream)
  report({ id, subject: host, state: remaining === 0 ? 'fail' : 'warn', saw, ...mend })
}

/** Finds what gives the mirror a higher quota: a login, where it has none yet and would use it. */
async function planMorePulls(host: string, upstream: KnownUpstream): Promise<Pick<Outcome, 'fix' | 'advice'>> {
  const { context, config, known } = upstream
  const login = getLogin(host)
  const source = getSource(config, host)
  const mirror = await context.found
  const hasCredential = async () => {
    try {
      return (await openCredentials(context, config, host).find()) !== undefined
    } catch (error) {
      if (error instanceof UpstreamError || error instanceof MirrorError) return true
      throw error
    }
  }
  if (source.from === 'anonymous') {
    const key = `upstreams.${JSON.stringify(host)}.credentials`
    return { advice: `${login}; ${await adviseOnConfig(context, `set ${key} to docker-config in`)}` }
  }
  if (known?.credentials !== undefined || (!mirror?.running.container && (await hasCredential())))
    return { advice: 'Wait, or use an account with more pulls. Cached images are served meanwhile.' }
  if (!mirror?.running.container) return { fix: { command: login, isOwn: false } }
  const { ports, otherFlags, forOwner } = await planStart(context)
  const again = toStartCommand(ports, [...otherFlags, `--credentials ${host}`])
  return { fix: { command: `${login} && ${forOwner(again)}`, isOwn: false } }
}

function getLogin(host: string): string {
  return host === 'docker.io' ? 'docker login' : `docker login ${host}`
}

function getSource(config: Config, host: string): CredentialsSource {
  return config.upstreams[host]?.credentials ?? { from: 'docker-config' }
}

/** Opens the credential of an upstream, as the mirror does. */
function openCredentials({ surroundings: { env } }: DoctorContext, config: Config, host: string): Credentials {
  return createCredentials({
    host: getCredentialHost(host, config.upstreams[host] ?? {}),
    source: getSource(config, host),
    dockerConfig: getDockerConfigPath(env),
    env,
    runCommand,
    clock: systemClock,
  })
}

/** Reads the credential of each upstream, as the mirror does, and shows it to the upstream. */
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
      try {
        const credential = await openCredentials(context, config, host).find()
        if (credential === undefined)
          return report(toOk(id, `No credential is configured; ${host} is asked anonymously.`, host))
        if (isOffline(config, status)) return report(toOk(id, `The credential for ${host} is readable.`, host))
        const tested = await testCredential(host, config.upstreams[host], credential, context)
        if (tested.result === 'refused' || tested.result === 'untrusted')
          return report({ id, subject: host, state: 'fail', ...(await describeRefusal(host, tested, context, config)) })
        const what = tested.result === 'accepted' ? 'accepts the credential' : 'is asked with the readable credential'
        report(toOk(id, `${host} ${what}.`, host))
      } catch (error) {
        if (!(error instanceof UpstreamError) && !(error instanceof MirrorError)) throw error
        const fault = error instanceof CredentialError ? error.fault : undefined
        const advice = fault && adviseOnCredential(fault, toHomePath(getDockerConfigPath(env)))
        report({ id, subject: host, state: 'fail', saw: error.message, ...(advice !== undefined && { advice }) })
      }
    }),
  )
}

/** Describes a credential that the upstream does not accept, and what replaces it at its source. */
async function describeRefusal(
  host: string,
  tested: Extract<CredentialTest, { readonly result: 'refused' | 'untrusted' }>,
  context: DoctorContext,
  config: Config,
): Promise<Pick<Outcome, 'saw' | 'fix' | 'advice'>> {
  const key = `upstreams.${JSON.stringify(host)}`
  if (tested.result === 'untrusted') {
    const { realm } = tested
    const saw = `${host} asks to send its credential to ${realm}, which is not known to belong to it.`
    return {
      saw,
      advice: await adviseOnConfig(context, `If it does, set ${key}.tokenHosts: [${JSON.stringify(realm)}] in`),
    }
  }
  const saw = `${tested.by} refuses the credential for ${host} (${tested.status}): it is wrong or has expired.`
  const source = getSource(config, host)
  if (source.from === 'password-file') return { saw, advice: `Write the current password into ${source.passwordFile}.` }
  if (source.from === 'password-env') {
    const { ports, otherFlags, forOwner } = await planStart(context)
    const again = forOwner(`mirror down && ${toStartCommand(ports, otherFlags)}`)
    return { saw, advice: `Set ${source.passwordEnv} to the current password, then: ${again}` }
  }
  const login = getLogin(getCredentialHost(host, config.upstreams[host] ?? {}))
  return { saw, fix: { command: login, isOwn: false } }
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
