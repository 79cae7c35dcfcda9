// Measures how long the program takes to start, to answer and to be up, beside a bare Node.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { median } from './accounting.js'

const program = join(dirname(fileURLToPath(import.meta.url)), '..', 'bin', 'run.js')
const ports = ['--cache-port', '0', '--admin-port', '0', '--no-registry']

/** Measures the start; returns a section of RESULTS.md as lines. @param {{ rounds: number, ups: number }} effort */
export function benchStartUp({ rounds, ups }) {
  const home = mkdtempSync(join(tmpdir(), 'mirror-bench-'))
  const env = { ...process.env, MIRROR_HOME: home, MIRROR_NETWORKS: '', NO_COLOR: '1' }
  const time = (args) => {
    const begun = performance.now()
    const { status, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' })
    if (status !== 0) throw new Error(`${args.join(' ')} ended with ${status}: ${stderr}`)
    return performance.now() - begun
  }
  const subjects = {
    '`node -e 0`': () => time(['-e', '0']),
    '`mirror status` (running)': () => time([program, 'status']),
    '`mirror status --json` (running)': () => time([program, 'status', '--json']),
    '`mirror --help`': () => time([program, '--help']),
  }
  try {
    const upTimes = []
    for (let round = 0; round < ups; round++) {
      if (round > 0) time([program, 'down'])
      upTimes.push(time([program, 'up', ...ports]))
    }
    const samples = Object.fromEntries(Object.keys(subjects).map((name) => [name, []]))
    // Alternate, so that a noisy minute affects every subject.
    for (let round = 0; round < rounds; round++) {
      for (const [name, measure] of Object.entries(subjects)) samples[name].push(measure())
    }
    const bare = median(samples['`node -e 0`'])
    const row = (name, values) =>
      `| ${name} | ${median(values).toFixed(0)} ms | ${(median(values) / bare).toFixed(2)} × |`
    return [
      '## Starting',
      '',
      `Medians of ${rounds} alternating rounds (\`mirror up\`: ${ups}).`,
      '',
      '| what | time | beside `node -e 0` |',
      '|---|---|---|',
      ...Object.entries(samples).map(([name, values]) => row(name, values)),
      row('`mirror up`, until it answers', upTimes),
      '',
    ]
  } finally {
    spawnSync(process.execPath, [program, 'down'], { env })
    rmSync(home, { recursive: true, force: true })
  }
}
