// Measures the mirror beside other servers, and writes bench/RESULTS.md and its chart. --quick ends in minutes and writes nothing.
// --only pulling|starting|pushing|metadata|dashboard measures one section, and keeps the others in the file.
// --release DIR, or MIRROR_BENCH_RELEASE, names another build of the mirror, whose metadata is measured too.
import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { drawChart } from './chart.js'
import { benchDashboard } from './dashboard.js'
import { benchMetadata } from './metadata.js'
import { installPrograms, versionOf } from './programs.js'
import { measurePulls } from './pull.js'
import { benchPush } from './push.js'
import { reportPulls } from './report.js'
import { benchStartUp } from './start-up.js'

const here = dirname(fileURLToPath(import.meta.url))
const { values: flags } = parseArgs({
  options: { quick: { type: 'boolean' }, only: { type: 'string' }, release: { type: 'string' } },
})
const isQuick = flags.quick === true
const pulls = isQuick
  ? { rounds: 1, seconds: 1, coldBlobs: 3, layerBytes: 10_000_000, scale: false }
  : { rounds: 5, seconds: 3, coldBlobs: 9, layerBytes: 50_000_000, scale: true }
const starts = isQuick ? { rounds: 3, ups: 1 } : { rounds: 15, ups: 5 }
const resultsFile = join(here, 'RESULTS.md')

const sections = {
  pulling: benchPulls,
  starting: () => benchStartUp(starts),
  pushing: () => (isQuick && flags.only === undefined ? [] : benchPush()),
  metadata: () => benchMetadata(flags),
  dashboard: () => benchDashboard(isQuick ? { rounds: 1, seconds: 10 } : { rounds: 5, seconds: 40 }),
}
if (flags.only !== undefined && !Object.hasOwn(sections, flags.only))
  throw new Error(`--only takes one of: ${Object.keys(sections).join(', ')}`)

const programs = installPrograms()
const text = flags.only === undefined ? await measureAll() : await measureOne(flags.only)
// Keep only the results of a full run.
if (!isQuick) writeFileSync(resultsFile, text)
process.stdout.write(text)

async function measureAll() {
  const lines = ['# Results', '', `${describeMachine()}${isQuick ? ' A quick run: its figures are rough.' : ''}`, '']
  for (const measure of Object.values(sections)) lines.push(...(await measure()))
  return lines.join('\n')
}

/** Measures one section. Returns the results with it in the place of the one before. */
async function measureOne(name) {
  const [head, blank, ...rest] = await sections[name]()
  const section = [head, blank, `Measured separately: ${describeMachine()}`, '', ...rest].join('\n')
  if (isQuick) return section
  const parts = readFileSync(resultsFile, 'utf8')
    .trimEnd()
    .split(/\n(?=## )/)
  const at = parts.findIndex((part) => part.startsWith(`${head}\n`))
  parts.splice(at === -1 ? parts.length : at, 1, section)
  return `${parts.map((part) => part.trimEnd()).join('\n\n')}\n`
}

function describeMachine() {
  const [cpu] = cpus()
  const pacing = readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').trim()
  const memory = Math.round(totalmem() / 2 ** 30)
  return `Node ${process.version}, Linux ${release()}, ${cpus().length} cores (${cpu.model.trim()}), ${memory} GiB, TCP congestion control ${pacing}, ${new Date().toISOString().slice(0, 10)}.`
}

async function benchPulls() {
  if (!['docker-registry', 'nginx', 'wrk'].every((name) => programs.has(name)))
    return [
      '## Pulling',
      '',
      'Not measured: it takes docker-registry, nginx and wrk, which root can have installed here.',
      '',
    ]
  const rows = await measurePulls(pulls)
  const versions = { 'docker-registry': versionOf('docker-registry'), nginx: versionOf('nginx') }
  if (!isQuick) writeFileSync(join(here, 'chart.svg'), drawChart(rows))
  return reportPulls(rows, pulls, versions)
}
