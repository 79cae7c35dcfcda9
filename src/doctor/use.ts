import type { ClientReport } from '../admin/activity.ts'
import { openMachineRecords } from '../clients/records.ts'
import { MirrorError } from '../lib/errors.ts'
import { quoteShellWord } from '../lib/process.ts'
import { describeConfigured, hasKnownProducts } from '../stats/configured-clients.ts'
import { type DoctorContext, notRunning, type Report, type Task, toOk, toSkipped } from './context.ts'
import { adviseOnConfig } from './start-command.ts'

const maxUnseenMs = 7 * 24 * 3_600_000

/** Lists the checks of what clients did. */
export function listUseTasks(context: DoctorContext): Task[] {
  return [
    { ids: ['use.hosts', 'use.registries'], run: (report) => checkRefusals(context, report) },
    { ids: ['use.seen', 'use.head-only'], run: (report) => checkUse(context, report) },
  ]
}

async function checkRefusals(context: DoctorContext, report: Report): Promise<void> {
  const answer = await context.status
  if (answer === undefined) {
    report(toSkipped('use.hosts', notRunning))
    return report(toSkipped('use.registries', notRunning))
  }
  const hosts = Object.entries(answer.refusedHosts)
  const allowed = hosts.length === 0 ? [] : await listAllowedHosts(context)
  const names = [...new Set([...allowed, ...hosts.map(([host]) => host.replace(/:\d+$/, ''))])]
  for (const [host, count] of hosts)
    report({
      id: 'use.hosts',
      subject: host,
      state: 'fail',
      saw: `${formatCount(count, 'request', 'requests')} to ${JSON.stringify(host)} ${count === 1 ? 'was' : 'were'} refused, because the mirror does not have this name; the client pulled from the origin.`,
      // Name all of them, because the key can be there once only.
      advice: await adviseOnConfig(context, `Write allowedHosts: [${names.map(toJson).join(', ')}] in`),
    })
  if (hosts.length === 0) report(toOk('use.hosts'))
  const registries = Object.entries(answer.refusedRegistries)
  for (const [registry, count] of registries)
    report({
      id: 'use.registries',
      subject: registry,
      state: 'warn',
      saw: `${formatCount(count, 'request', 'requests')} for images of ${JSON.stringify(registry)} ${count === 1 ? 'was' : 'were'} refused, because it is not mirrored.`,
      advice: await adviseOnConfig(context, `Add ${toJson(registry)}: {} below "upstreams:" in`),
    })
  if (registries.length === 0) report(toOk('use.registries'))
}

const toJson = (text: string) => JSON.stringify(text)

/** Lists the names that mirror.yaml allows; none for the mirror of another user, whose file root does not read. */
async function listAllowedHosts({ found, config }: DoctorContext): Promise<readonly string[]> {
  if ((await found)?.user !== undefined) return []
  try {
    return (await config).allowedHosts
  } catch (error) {
    if (error instanceof MirrorError) return []
    throw error
  }
}

async function checkUse(context: DoctorContext, report: Report): Promise<void> {
  const [seen, headOnly] = ['use.seen', 'use.head-only'] as const
  const status = await context.status
  const reports = status === undefined ? undefined : await fetchClients(status.endpoints.admin)
  if (reports === undefined) {
    const why = status === undefined ? notRunning : 'this mirror does not record its clients'
    report(toSkipped(seen, why))
    return report(toSkipped(headOnly, why))
  }
  const fallen = reports.filter((one) => one.headOnly.length > 0)
  for (const { address, product, headOnly: registries } of fallen)
    report({
      id: headOnly,
      subject: `${product} at ${address}`,
      state: 'warn',
      saw: `It asked for tags of ${registries.join(', ')} and then fetched nothing: it probably pulls from the origin.`,
      advice: 'See the requests: mirror logs',
    })
  if (fallen.length === 0) report(toOk(headOnly))
  const records = (await openMachineRecords(context.machine).list()).filter(
    (one) => !one.undone && one.root === undefined,
  )
  const known = records.filter(({ client, isNamed }) => hasKnownProducts(client) && isNamed !== true)
  if (known.length === 0) return report(toSkipped(seen, 'no client is configured that tells its name'))
  let isAllSeen = true
  for (const { client, title, since } of known) {
    const [described] = describeConfigured([{ client, title, since }], reports)
    if (Date.now() - Date.parse(described?.lastSeen ?? since) < maxUnseenMs) continue
    isAllSeen = false
    report({
      id: seen,
      subject: client,
      state: 'warn',
      saw: `${client} is configured (${title}), and has not used the mirror in the last seven days.`,
      fix: { command: `mirror configure ${quoteShellWord(client)} --check`, isOwn: false },
    })
  }
  if (isAllSeen) report(toOk(seen))
}

/** Asks the running mirror for the clients that it has seen; undefined where it does not record them. */
async function fetchClients(admin: readonly string[]): Promise<readonly ClientReport[] | undefined> {
  const [url] = admin
  if (url === undefined) return undefined
  const target = new URL('/api/clients', url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:'))
  const text = await new Promise<string | undefined>((resolve) => {
    const { get } = process.getBuiltinModule('node:http')
    const request = get(target, { agent: false, timeout: 2000 }, (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (part: string) => (body += part))
      response.once('end', () => resolve(response.statusCode === 200 ? body : undefined))
    })
    request.once('timeout', () => request.destroy())
    request.once('error', () => resolve(undefined))
  })
  return text === undefined ? undefined : (JSON.parse(text) as ClientReport[])
}

function formatCount(amount: number, one: string, several: string): string {
  return `${amount} ${amount === 1 ? one : several}`
}
