// Measures pulls of cached content by one or more clients: each row for every subject, in alternation.
import { cpuSeconds, median } from './accounting.js'
import { blobUrl, manifestUrl } from './servers.js'
import { drain } from './sink.js'

const accept = ['Accept: application/vnd.docker.distribution.manifest.v2+json']

/** Returns the rows of the table; `per`: the unit of the figure. */
export function warmRows(content) {
  return [
    {
      key: 'large',
      title: 'warm 60 MB blob, 1 client',
      per: 'bytes',
      clients: 1,
      size: content.large.size,
      url: (s) => blobUrl(s, content.large),
    },
    {
      key: 'medium',
      title: 'warm 5 MB blob, 100 clients',
      per: 'requests',
      clients: 100,
      url: (s) => blobUrl(s, content.medium),
    },
    {
      key: 'digest',
      title: 'manifest by digest, 100 clients',
      per: 'requests',
      clients: 100,
      url: (s) => manifestUrl(s, content.app.digest),
      headers: accept,
    },
    {
      key: 'tag',
      title: 'manifest by tag, fresh, 50 clients',
      per: 'requests',
      clients: 50,
      url: (s) => manifestUrl(s, 'latest'),
      headers: accept,
    },
    {
      key: 'tiny',
      title: 'tiny blob (config), 16 clients',
      per: 'requests',
      clients: 16,
      url: (s) => blobUrl(s, content.tiny),
    },
  ]
}

/** Loads a subject with wrk; a single client uses `drain`, which is faster because it does not parse every byte. */
async function load(wrk, row, subject, seconds) {
  const url = row.url(subject)
  if (row.clients > 1) return wrk(url, { ...row, seconds })
  const count = Math.max(5, Math.round(seconds * 25))
  const took = await drain(Array.from({ length: count }, () => url))
  const total = count * row.size
  return { bytes: total / took, requests: count / took, total, p99: (took / count) * 1000 }
}

/**
 * Measures one row for every subject: medians of alternating rounds.
 * @param {Record<string, import('./servers.js').Running>} subjects
 */
export async function measureWarm(wrk, subjects, row, { rounds, seconds }) {
  const samples = Object.fromEntries(Object.keys(subjects).map((name) => [name, []]))
  for (const subject of Object.values(subjects))
    await wrk(row.url(subject), { ...row, seconds: 0.5 < seconds ? 1 : seconds })
  for (let round = 0; round < rounds; round++) {
    for (const [name, subject] of Object.entries(subjects)) {
      const before = cpuSeconds(subject.pid)
      const result = await load(wrk, row, subject, seconds)
      const cpu = cpuSeconds(subject.pid) - before
      samples[name].push({ ...result, cpuPerGB: (cpu / result.total) * 1e9 })
    }
  }
  return Object.fromEntries(
    Object.entries(samples).map(([name, all]) => [
      name,
      {
        value: median(all.map((each) => each[row.per])),
        cpuPerGB: median(all.map(({ cpuPerGB }) => cpuPerGB)),
        p99: median(all.map(({ p99 }) => p99)),
      },
    ]),
  )
}
