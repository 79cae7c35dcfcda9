import type { DownloadReport } from '../../src/admin/activity.ts'
import type { StatusReport } from '../../src/admin/api.ts'
import { cleanText, formatAgo, formatBytes, formatCount, formatShare, formatSpan } from '../data/format.ts'
import { doctor, downloads, history, isUnused, now, status, summary, upstreams } from '../data/state.ts'
import { Badge, Command } from '../parts/pieces.tsx'
import { Table } from '../parts/table.tsx'
import { Charts } from './charts.tsx'
import { Tiles } from './tiles.tsx'

export function Overview() {
  return (
    <>
      <Attention />
      {isUnused.value && <FirstSteps />}
      <Tiles />
      <Downloads />
      <Charts />
      <Upstreams />
    </>
  )
}

/** Shows how to begin, on a mirror that nobody has used yet. */
export function FirstSteps() {
  return (
    <section class="panel first">
      <h2>Nothing has been pulled yet</h2>
      <p>Tell a client about the mirror, then pull an image. It appears here within a second.</p>
      <ol>
        <li>
          Docker: <Command text="mirror configure docker" />
        </li>
        <li>
          kind: <Command text="mirror configure kind > kind.yaml" />
        </li>
        <li>
          Try it: <Command text="docker pull alpine" />
        </li>
      </ol>
      <p class="quiet">
        All clients: <code>mirror configure --list</code>. To verify one: <code>mirror configure docker --check</code>
      </p>
    </section>
  )
}

/** Lists what needs a decision of the user, with the next step. */
function listTroubles(report: StatusReport): string[] {
  const networks = Object.entries(report.networks).filter(([, { state }]) => state !== 'listening')
  const { fail = 0, warn = 0 } = doctor.value?.report?.counts ?? {}
  const found = [...countWord(fail, 'failure'), ...countWord(warn, 'warning')].join(' and ')
  return [
    ...(report.troubles ?? []),
    ...networks.map(([name, { reason }]) => `Network ${name}: ${reason ?? 'waiting'}.`),
    ...(report.registry.damaged ?? []).map(
      ({ repository = 'a repository', reason }) => `Damaged: ${repository}: ${reason}`,
    ),
    ...Object.entries(report.refusedRegistries).map(
      ([host, count]) => `${host} is not mirrored (${count}×). Add it to “upstreams” in mirror.yaml.`,
    ),
    ...Object.entries(report.refusedHosts).map(
      ([host, count]) => `The Host “${host}” was refused (${count}×). Add it to “allowedHosts” if it is yours.`,
    ),
    ...(found === '' ? [] : [`mirror doctor found ${found}: see Doctor.`]),
  ]
}

function countWord(count: number, word: string): string[] {
  return count === 0 ? [] : [`${formatCount(count)} ${word}${count === 1 ? '' : 's'}`]
}

function Attention() {
  const troubles = status.value ? listTroubles(status.value) : []
  const failing = upstreams.value.filter(([, { state }]) => state !== 'ok')
  if (troubles.length + failing.length === 0) return null
  return (
    <section class="panel attention">
      <h2>Needs attention</h2>
      <ul>
        {failing.map(([name, { lastError }]) => (
          <li key={name}>
            {!lastError?.message.includes(name) && <b>{cleanText(name)}: </b>}
            {cleanText(lastError?.message ?? 'the last request failed')}
            {lastError && <span class="quiet"> {formatAgo(lastError.at, now.value)}</span>}
          </li>
        ))}
        {troubles.slice(0, 12).map((text) => (
          <li key={text}>{cleanText(text)}</li>
        ))}
      </ul>
    </section>
  )
}

function Downloads() {
  const all = downloads.value
  if (all.length === 0) return null
  return (
    <section class="panel">
      <h2>
        Downloads <small>{all.length}</small>
      </h2>
      <ul class="downloads">
        {all.map((download) => (
          <Download key={download.digest} {...download} />
        ))}
      </ul>
    </section>
  )
}

function Download({ digest, repository, arrived, size, followers, bytesPerSecond }: DownloadReport) {
  const rest = size !== undefined && bytesPerSecond > 0 ? (size - arrived) / bytesPerSecond : undefined
  return (
    <li>
      <span class="image" title={digest}>
        {cleanText(repository)} <span>{digest.slice(0, 19)}</span>
      </span>
      <progress
        value={size === undefined ? undefined : arrived}
        max={size}
        aria-label={`Download for ${cleanText(repository)}`}
      />
      <span class="quiet">
        {size === undefined ? formatBytes(arrived) : `${formatShare(arrived, size)} of ${formatBytes(size)}`} ·{' '}
        {formatBytes(bytesPerSecond)}/s{rest !== undefined && ` · ${formatSpan(rest)} left`} · {followers}{' '}
        {followers === 1 ? 'client' : 'clients'}
      </span>
    </li>
  )
}

const tones = { ok: 'good', failing: 'warn', open: 'bad' } as const
const words = { ok: 'ok', failing: 'failing', open: 'left alone' } as const

interface Row {
  readonly name: string
  readonly report: StatusReport['upstreams'][string]
  readonly latency: number | undefined
}

function Upstreams() {
  const latencies = new Map<string, { requests: number; totalMs: number }>()
  for (const bucket of history.value?.buckets ?? [])
    for (const [name, { requests, totalMs }] of Object.entries(bucket.upstreams)) {
      const sum = latencies.get(name) ?? { requests: 0, totalMs: 0 }
      latencies.set(name, { requests: sum.requests + requests, totalMs: sum.totalMs + totalMs })
    }
  const rows: Row[] = upstreams.value.map(([name, report]) => {
    const sum = latencies.get(name)
    return { name, report, latency: sum && sum.requests > 0 ? sum.totalMs / sum.requests : undefined }
  })
  return (
    <Table
      caption="Upstreams"
      rows={rows}
      keyOf={({ name }) => name}
      sort={-4}
      isShort
      empty={<p>{summary.value ? 'No registry has been asked yet.' : 'Connecting …'}</p>}
      columns={[
        { head: 'Registry', value: ({ name }) => cleanText(name) },
        {
          head: 'State',
          value: ({ report }) => words[report.state],
          cell: ({ report: { state, lastError } }) => (
            <>
              <Badge tone={tones[state]}>{words[state]}</Badge>{' '}
              {lastError && (
                <span class="quiet detail medium" title={cleanText(lastError.message)}>
                  {cleanText(lastError.message)}
                  {lastError.retryAfterSeconds !== undefined && `, again in ${formatSpan(lastError.retryAfterSeconds)}`}
                </span>
              )}
            </>
          ),
        },
        {
          head: 'Hits',
          isNumber: true,
          value: ({ report }) => report.hits,
          cell: ({ report }) => formatCount(report.hits),
        },
        {
          head: 'Misses',
          isNumber: true,
          value: ({ report }) => report.misses,
          cell: ({ report }) => formatCount(report.misses),
        },
        {
          head: 'Fetched',
          isNumber: true,
          from: 'medium',
          value: ({ report }) => report.bytesFromUpstream,
          cell: ({ report }) => formatBytes(report.bytesFromUpstream),
        },
        {
          head: 'Latency',
          isNumber: true,
          from: 'medium',
          value: ({ latency }) => latency ?? -1,
          cell: ({ latency }) => (latency === undefined ? '–' : `${Math.round(latency)} ms`),
        },
        {
          head: 'Quota',
          isNumber: true,
          from: 'wide',
          value: ({ report: { rateLimit } }) => (rateLimit && 'remaining' in rateLimit ? rateLimit.remaining : -1),
          cell: ({ report: { rateLimit } }) => {
            if (!rateLimit) return '–'
            return 'remaining' in rateLimit ? `${rateLimit.remaining} of ${rateLimit.limit}` : 'unlimited'
          },
        },
      ]}
    />
  )
}
