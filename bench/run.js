// Measures the mirror beside other servers, and writes bench/RESULTS.md and its chart. --quick ends in three minutes and writes nothing.
// --release DIR, or MIRROR_BENCH_RELEASE, names another build of the mirror, whose metadata is measured too.
import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { drawChart } from './chart.js'
import { benchMetadata } from './metadata.js'
import { installPrograms, versionOf } from './programs.js'
import { measurePulls } from './pull.js'
import { benchPush } from './push.js'
import { reportPulls } from './report.js'
import { benchStartUp } from './start-up.js'

const here = dirname(fileURLToPath(import.meta.url))
const { values: flags } = parseArgs({ options: { quick: { type: 'boolean' }, release: { type: 'string' } } })
const isQuick = flags.quick === true
const pulls = isQuick
  ? { rounds: 1, seconds: 1, coldBlobs: 3, layerBytes: 10_000_000, scale: false }
  : { rounds: 5, seconds: 3, coldBlobs: 9, layerBytes: 50_000_000, scale: true }
const starts = isQuick ? { rounds: 3, ups: 1 } : { rounds: 15, ups: 5 }

const programs = installPrograms()
const [cpu] = cpus()
const pacing = readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').trim()
const lines = [
  '# Results',
  '',
  `Node ${process.version}, Linux ${release()}, ${cpus().length} cores (${cpu.model.trim()}), ${Math.round(totalmem() / 2 ** 30)} GiB, TCP congestion control ${pacing}, ${new Date().toISOString().slice(0, 10)}.${isQuick ? ' A quick run: its figures are rough.' : ''}`,
  '',
]
if (['docker-registry', 'nginx', 'wrk'].every((name) => programs.has(name))) {
  const rows = await measurePulls(pulls)
  const versions = { 'docker-registry': versionOf('docker-registry'), nginx: versionOf('nginx') }
  lines.push(...reportPulls(rows, pulls, versions))
  if (!isQuick) writeFileSync(join(here, 'chart.svg'), drawChart(rows))
} else {
  lines.push(
    '## Pulling',
    '',
    'Not measured: it takes docker-registry, nginx and wrk, which root can have installed here.',
    '',
  )
}
lines.push(...benchStartUp(starts))
if (!isQuick) lines.push(...(await benchPush()))
lines.push(...(await benchMetadata(flags)))

const text = lines.join('\n')
// Keep only the results of a full run.
if (!isQuick) writeFileSync(join(here, 'RESULTS.md'), text)
process.stdout.write(text)
