import { computed } from '@preact/signals'
import type { HistoryBucket, HistoryRange, HistoryReport } from '../../src/admin/activity.ts'
import { cleanText, formatBytes, formatCount, formatMs } from '../data/format.ts'
import { history, range } from '../data/state.ts'
import { Chart, type Series } from '../parts/chart.tsx'

const minute = 60_000
const ranges: Readonly<Record<HistoryRange, string>> = { hour: 'Hour', day: 'Day', week: 'Week', month: 'Month' }
/** Sets the length of the drawn spans, which are longer than those of the report: single minutes of a day are too thin. */
const steps: Readonly<Record<HistoryRange, number>> = {
  hour: minute,
  day: 15 * minute,
  week: 120 * minute,
  month: 1440 * minute,
}
/** Limits the lines of upstreams. */
const maxLines = 4

type Sums = Pick<HistoryBucket, 'hits' | 'stale' | 'misses' | 'bytesServed' | 'bytesFromUpstream' | 'upstreams'>

const empty: Sums = { hits: 0, stale: 0, misses: 0, bytesServed: 0, bytesFromUpstream: 0, upstreams: {} }

const drawn = computed(() => (history.value ? toSeries(history.value) : undefined))

/** Adds up the buckets of each drawn span, and fills the spans without traffic. */
function toSeries(report: HistoryReport) {
  const step = Math.max(steps[report.range], report.step)
  const first = Math.floor(report.from / step) * step
  const times = Array.from(
    { length: Math.max(1, Math.ceil((report.to - first) / step)) },
    (_, index) => first + index * step,
  )
  const sums: Sums[] = times.map(() => empty)
  for (const bucket of report.buckets) {
    const index = Math.floor((bucket.at - first) / step)
    const sum = sums[index]
    if (sum) sums[index] = add(sum, bucket)
  }
  const counts = new Map<string, number>()
  for (const { upstreams } of sums)
    for (const [name, { requests }] of Object.entries(upstreams)) counts.set(name, (counts.get(name) ?? 0) + requests)
  const names = [...counts].toSorted((a, b) => b[1] - a[1]).slice(0, maxLines)
  const column = (label: string, color: string, value: (sum: Sums) => number | undefined): Series => ({
    label,
    color,
    values: sums.map((sum) => value(sum)),
  })
  return {
    step,
    times,
    requests: [
      column('Hits', 'good', ({ hits, stale }) => hits - stale),
      column('Stale', 'stale', ({ stale }) => stale),
      column('Misses', 'miss', ({ misses }) => misses),
    ],
    bytes: [
      column('Served', 'good', ({ bytesServed }) => bytesServed),
      column('Fetched', 'miss', ({ bytesFromUpstream }) => bytesFromUpstream),
    ],
    latency: names.map(([name], index) =>
      column(cleanText(name), `line${index}`, ({ upstreams }) => {
        const times = upstreams[name]
        return times && times.requests > 0 ? times.totalMs / times.requests : undefined
      }),
    ),
  }
}

function add(sum: Sums, bucket: Sums): Sums {
  const upstreams = { ...sum.upstreams }
  for (const [name, { requests, totalMs, maxMs }] of Object.entries(bucket.upstreams)) {
    const before = upstreams[name] ?? { requests: 0, totalMs: 0, maxMs: 0 }
    upstreams[name] = {
      requests: before.requests + requests,
      totalMs: before.totalMs + totalMs,
      maxMs: Math.max(before.maxMs, maxMs),
    }
  }
  return {
    hits: sum.hits + bucket.hits,
    stale: sum.stale + bucket.stale,
    misses: sum.misses + bucket.misses,
    bytesServed: sum.bytesServed + bucket.bytesServed,
    bytesFromUpstream: sum.bytesFromUpstream + bucket.bytesFromUpstream,
    upstreams,
  }
}

const sum = (values: readonly (number | undefined)[]) => values.reduce<number>((all, value) => all + (value ?? 0), 0)

function average(values: readonly (number | undefined)[]): number | undefined {
  const known = values.filter((value) => value !== undefined)
  return known.length > 0 ? sum(known) / known.length : undefined
}

export function Charts() {
  const all = drawn.value
  return (
    <section aria-label="Traffic">
      <div class="bar">
        <h2>Traffic</h2>
        <div class="segments" role="group" aria-label="Range">
          {Object.entries(ranges).map(([key, label]) => (
            <button
              key={key}
              type="button"
              aria-pressed={range.value === key}
              onClick={() => (range.value = key as HistoryRange)}
            >
              {label}
            </button>
          ))}
        </div>
      </div>
      {all && (
        <div class="charts">
          <Chart
            {...common(all)}
            title="Requests"
            kind="stack"
            series={all.requests}
            format={formatNumber}
            total={sum}
          />
          <Chart
            {...common(all)}
            title="Bytes"
            kind="overlap"
            base={1024}
            series={all.bytes}
            format={formatBytes}
            total={sum}
          />
          <Chart
            {...common(all)}
            title="Upstream latency"
            kind="line"
            series={all.latency}
            format={formatMs}
            total={average}
          />
        </div>
      )}
    </section>
  )
}

const common = ({ times, step }: { times: readonly number[]; step: number }) => ({ times, step })

const formatNumber = (value: number) => (Number.isInteger(value) ? formatCount(value) : '')
