// Renders the figures of the pulls as a section of RESULTS.md.
const GB = (value) => `${(value / 1e9).toFixed(2)} GB/s`
const MBs = (value) => `${(value / 1e6).toFixed(0)} MB/s`
const MB = (value) => `${(value / 1e6).toFixed(0)} MB`
const perSecond = (value) => `${Math.round(value).toLocaleString('en-US')}/s`
const seconds = (value) => `${value.toFixed(2)} s`
const ms = (value) => `${value.toFixed(0)} ms`
const times = (value) => `${value.toFixed(2)} ×`

/** Lists the rows of the table, with the unit of each figure. */
const table = [
  { key: 'large', title: 'warm 60 MB blob, 1 client', show: GB },
  { key: 'large', title: 'processor time a GB of that', show: seconds, of: 'cpuPerGB' },
  { key: 'medium', title: 'warm 5 MB blob, 100 clients', show: perSecond },
  { key: 'digest', title: 'manifest by digest, 100 clients', show: perSecond },
  { key: 'tag', title: 'manifest by tag, fresh, 50 clients', show: perSecond },
  { key: 'tiny', title: 'tiny blob (config), 16 clients', show: perSecond },
  { key: 'cold', title: 'cold 60 MB blob, 1 client', show: MBs },
  { key: 'memory', title: 'peak memory after all of it', show: MB },
]
const columns = ['mirror', 'docker-registry', 'nginx', 'plain Node']

/** @param {Record<string, any>} rows @param {{ rounds: number, seconds: number }} effort @param {Record<string, string>} versions */
export function reportPulls(rows, effort, versions) {
  const lines = table.map(({ key, title, show, of = 'value' }) => {
    const values = columns.map((name) => rows[key][name]?.[of])
    const beside = (other) => (other === undefined ? '–' : times(values[0] / other))
    const cells = values.map((value) => (value === undefined ? '–' : show(value)))
    return `| ${[title, ...cells, beside(values[1]), beside(values[2])].join(' | ')} |`
  })
  const heads = columns.map((name) => (versions[name] === undefined ? name : `${name} ${versions[name]}`))
  const { direct, mirror, 'without prefetch': plain } = rows.firstPull
  return [
    '## Pulling',
    '',
    `Medians of ${effort.rounds} alternating rounds of ${effort.seconds} s by wrk, on the same cores; the large and the cold blob by a client that reads and forgets. Every cache pulls from an nginx on loopback. The last columns give the mirror’s figure divided by the other’s.`,
    '',
    `| what | ${heads.join(' | ')} | beside docker-registry | beside nginx |`,
    `|---|${columns.map(() => '---').join('|')}|---|---|`,
    ...lines,
    '',
    'docker-registry answers a cold pull with bytes that it has not checked, and fetches them a second time to keep them; the mirror hashes and keeps what it sends, and holds the end back until the digest agrees.',
    '',
    '![Requests a second and processor time](chart.svg)',
    '',
    `While 20 blobs of 5 MB arrive at once, 99 of 100 manifests that are held are answered within ${rows.crowd.mirror.p99.toFixed(1)} ms (${perSecond(rows.crowd.mirror.requests)}).`,
    '',
    '### The first pull',
    '',
    `An image of 10 layers, ${MB(effort.layerBytes * 10)}, by a client with three connections, from a registry 20 ms away that gives each connection 25 MB/s.`,
    '',
    '| directly | through a cold mirror | the same without prefetch |',
    '|---|---|---|',
    `| ${seconds(direct.value)} | ${seconds(mirror.value)}, ${times(mirror.value / direct.value)} | ${seconds(plain.value)}, ${times(plain.value / direct.value)} |`,
    '',
    ...(rows.scale ? reportScale(rows.scale) : []),
  ]
}

function reportScale({ large, eviction, idle }) {
  return [
    '### Scale',
    '',
    '| what | figure |',
    '|---|---|',
    `| start with 100,000 blobs and 10,000 tags, until it answers | ${ms(large.start)} |`,
    `| \`GET /api/status\` of it | ${ms(large.status)} |`,
    `| most memory of start and status | ${MB(large.memory)} |`,
    `| longest wait for a ping while ${eviction.blobs.toLocaleString('en-US')} blobs are evicted | ${ms(eviction.longest)} |`,
    `| ping with 5,000 idle connections, 99th percentile | ${ms(idle.p99)} (${MB(idle.memory)}) |`,
    '',
  ]
}
