// Runs the mirror for minutes under all loads at once (pulls, pushes, deletions, broken upstreams, hostile clients, kill -9) and checks every byte.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { soak } from './soak.js'

const usage = 'npm run soak -- [--minutes N] [--seed N]'
const { minutes, seed } = readOptions()
const say = (line) => process.stdout.write(`${line}\n`)
const home = mkdtempSync(join(tmpdir(), 'mirror-soak-'))
say(`${minutes} minutes, --seed ${seed}, Node ${process.version}`)
const { ledger, mirror, upstreams, kills, checked, seconds } = await soak({ home, minutes, seed, say })

const faults = Object.entries(upstreams.faults)
const faultCount = faults.reduce((sum, [, count]) => sum + count, 0)
say('')
for (const line of ledger.lines()) say(line)
say(
  `upstreams          ${upstreams.requests} requests, ${faultCount} faults: ${faults.map((each) => each.join(' ')).join(', ')}`,
)
say('')
const figures = [
  [`${Math.round(seconds)} s`, 'of everything at once'],
  [ledger.total(), 'answers'],
  [`${(ledger.bytesChecked / 1e9).toFixed(2)} GB`, 'of bodies checked by digest'],
  [kills, `kill -9; the slowest start took ${Math.round(mirror.slowestStartMs)} ms`],
  [checked, 'checks of acknowledged objects'],
  [`${Math.round(mirror.peakBytes / 2 ** 20)} MiB`, 'of memory at most'],
  [`${Math.round(ledger.slowestHealthMs)} ms`, 'for the slowest answer of /healthz'],
  [ledger.findingCount, 'findings'],
]
for (const [value, what] of figures) say(`${String(value).padStart(10)}  ${what}`)
if (ledger.findingCount === 0) rmSync(home, { recursive: true, force: true })
else {
  say(`\nThe mirror's folder, with its log, stays: ${home}`)
  process.exitCode = 1
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: { minutes: { type: 'string', default: '15' }, seed: { type: 'string', default: '1' } },
    })
    const numbers = { minutes: Number(values.minutes), seed: Number(values.seed) }
    if (!(numbers.minutes > 0) || !Number.isSafeInteger(numbers.seed))
      throw new Error('both are numbers, and minutes is above 0')
    return numbers
  } catch (error) {
    process.stderr.write(`${error.message}\n${usage}\n`)
    process.exit(2)
  }
}
