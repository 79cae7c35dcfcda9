import type { DamagedRepositoryReport, StatusReport } from '../../admin/api.ts'
import { formatBytes } from '../../lib/units.ts'
import { upstreamSetting } from '../../oci/reference.ts'
import type { Coat, Paint } from '../paint.ts'
import { count, counted, type Fact, printable, renderFacts } from './table.ts'

const mostNamed = 5

/** What the mirror waits for and what has failed, each with what to do next. */
export function renderTroubles(report: StatusReport, paint: Paint, columns: number | undefined): string[] {
  const { errors, staleServed, digestMismatches } = report.cache
  const rows = [
    ...named('update', updates(report), paint.yellow),
    ...named('waiting', waiting(report), paint.yellow),
    ...named('failed', failures(report), paint.red),
    ...named('errors', amount(errors, 'request', 'requests', 'could not be answered'), paint.red),
    ...named(
      'stale',
      amount(staleServed, 'answer', 'answers', 'came from the cache because an upstream did not answer'),
      paint.yellow,
    ),
    ...named(
      'damaged',
      amount(digestMismatches, 'body', 'bodies', 'from upstream did not match the digest'),
      paint.red,
    ),
    ...named('damaged', damagedRepositories(report.registry.damaged ?? []), paint.red),
    ...named('refused', refusals(report), paint.yellow),
  ]
  return rows.length === 0 ? [] : [renderFacts(rows, paint, columns)]
}

/** Rows under one name. */
function named(name: string, texts: readonly string[], coat: Coat): Fact[] {
  return texts.map((text, at): Fact => [at === 0 ? name : '', text, coat])
}

function amount(value: number, one: string, several: string, what: string): string[] {
  return value === 0 ? [] : [`${counted(value, one, several)} ${what}. Next: mirror logs`]
}

function updates({ version, cliVersion }: StatusReport): string[] {
  if (cliVersion === undefined) return []
  if (compareVersions(cliVersion, version) > 0)
    return [`this command is mirror ${cliVersion}, newer than the mirror that runs. To replace it: mirror up`]
  return [
    `this command is mirror ${cliVersion}, older than the mirror that runs. Install mirror ${version} to match it`,
  ]
}

function waiting({ networks, upstreams }: StatusReport): string[] {
  return [
    ...Object.entries(networks).flatMap(([name, { state, reason = '' }]) =>
      state === 'waiting' ? [`network ${name}: ${reason}. Next: ${networkStep(name, reason)}`] : [],
    ),
    ...Object.entries(upstreams).flatMap(([host, { state, lastError }]) => {
      const retry = lastError?.retryAfterSeconds
      if (state !== 'open' && !(state === 'ok' && lastError)) return []
      const why = lastError === undefined ? 'it does not answer' : sentence(lastError.message)
      const when = retry === undefined ? 'it is asked again with the next request' : `asked again in ${retry} s`
      return [`${upstreamTrouble(host, why)}; ${when}. What is cached is served. Next: mirror logs`]
    }),
  ]
}

/** Most failures name their upstream themselves. */
function upstreamTrouble(host: string, why: string): string {
  return why.startsWith(`${host} `) ? `upstream ${why}` : `upstream ${host}: ${why}`
}

function networkStep(name: string, reason: string): string {
  if (reason.includes('engine')) return 'docker info'
  return name === 'kind' ? 'kind create cluster' : `docker network create ${name}`
}

/** Pushed repositories whose record is damaged. */
export function damagedRepositories(damaged: readonly DamagedRepositoryReport[]): string[] {
  return damaged.map(({ repository, path, original, reason, served }) => {
    const name = repository === undefined ? 'a pushed repository' : `the pushed repository ${repository}`
    const next = served
      ? `The damaged record is kept at ${path}. Next: push again what is missing`
      : `It answers with 500 and takes no pushes. Next: restore ${original} from a backup and restart the mirror, or give the repository up: mirror registry rm ${repository ?? 'NAME'}`
    return `${name}: ${served ? '' : `${path}: `}${sentence(reason)}. ${next}`
  })
}

function failures({ runtime, networks, upstreams, storage, troubles = [] }: StatusReport): string[] {
  const { freeBytes = Infinity, minFree, path } = storage
  const failed = [
    ...troubles.map((reason) => `${sentence(reason)}. Next: ${stepFor(reason, troubleStep(reason, runtime))}`),
    ...Object.entries(networks).flatMap(([name, { state, reason = '' }]) =>
      state === 'failed'
        ? [
            `network ${name}: ${sentence(reason)}. Next: ${stepFor(reason, 'free that port, or mirror up --cache-port N')}`,
          ]
        : [],
    ),
    ...Object.entries(upstreams).flatMap(([host, { state, lastError }]) =>
      state === 'failing'
        ? [`${upstreamTrouble(host, sentence(lastError?.message ?? 'a request failed'))}. Next: mirror logs`]
        : [],
    ),
  ]
  if (freeBytes < minFree)
    failed.push(
      `disk: ${formatBytes(freeBytes)} are free at ${path}, less than cache.minFree (${formatBytes(minFree)}), so that new content may not be kept. Next: free some space, or mirror cache prune`,
    )
  return failed
}

function troubleStep(reason: string, runtime: StatusReport['runtime']): string {
  if (!reason.includes('the password file')) return 'mirror logs'
  // A container has a copy.
  return runtime === 'container'
    ? 'correct the file that "registry.auth.htpasswd" in mirror.yaml names, then: mirror up'
    : 'correct the file; the change takes effect at once'
}

/** What to do about a failure: more open files where they are what is missing. */
function stepFor(reason: string, otherwise: string): string {
  const isFiles = /\b(EMFILE|ENFILE|files open)\b/.test(reason)
  return isFiles ? 'allow it more open files (ulimit -n), then: mirror down && mirror up' : otherwise
}

/** What clients asked for and did not get, because the configuration does not name it. */
function refusals({ refusedHosts, refusedRegistries }: StatusReport): string[] {
  const texts: string[] = []
  const registries = Object.keys(refusedRegistries)
  if (registries.length > 0) {
    const keys = registries.slice(0, mostNamed).map((host) => printable(host))
    const one = registries.length === 1
    texts.push(
      `${namesWithCounts(refusedRegistries)}: ${one ? 'this registry is' : 'these registries are'} not mirrored. Next: add "${upstreamSetting(...keys)}" to mirror.yaml, then: mirror up`,
    )
  }
  const hosts = Object.keys(refusedHosts)
  if (hosts.length > 0) {
    const names = hosts.slice(0, mostNamed).map((host) => JSON.stringify(printable(host)))
    texts.push(
      `clients that reach the mirror as ${namesWithCounts(refusedHosts)}. If they are yours: add "allowedHosts: [${names.join(', ')}]" to mirror.yaml, then: mirror up`,
    )
  }
  return texts
}

function namesWithCounts(counts: Readonly<Record<string, number>>): string {
  const all = Object.entries(counts)
  const names = all.slice(0, mostNamed).map(([name, times]) => `${printable(name)} (${count(times)}×)`)
  return names.join(', ') + (all.length > mostNamed ? ` and ${all.length - mostNamed} more` : '')
}

/** Without a full stop at the end: more follows. */
function sentence(text: string): string {
  return printable(text, 300).replace(/\.+$/, '')
}

/** By their numbers: `1.10.0` is newer than `1.9.0`. */
function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((version) => version.split(/[.+-]/, 3).map((part) => Number.parseInt(part, 10) || 0))
  for (const at of [0, 1, 2]) {
    const difference = (left?.[at] ?? 0) - (right?.[at] ?? 0)
    if (difference !== 0) return difference
  }
  // A pre-release comes before its release.
  return Number(b.includes('-')) - Number(a.includes('-'))
}
