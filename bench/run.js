// Measures how long the program takes to start, to answer, and to be up, beside a bare Node; writes bench/RESULTS.md.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, release, tmpdir, totalmem } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { benchPush } from './push.js'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const program = join(root, 'bin', 'run.js')
const home = mkdtempSync(join(tmpdir(), 'mirror-bench-'))
const env = { ...process.env, MIRROR_HOME: home, MIRROR_NETWORKS: '', NO_COLOR: '1' }
const ports = ['--cache-port', '0', '--admin-port', '0', '--no-registry']
const rounds = 15

function time(args, expected = 0) {
  const begun = performance.now()
  const { status, stderr } = spawnSync(process.execPath, args, { env, encoding: 'utf8' })
  if (status !== expected) throw new Error(`${args.join(' ')} ended with ${status}: ${stderr}`)
  return performance.now() - begun
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}

const subjects = {
  '`node -e 0`': () => time(['-e', '0']),
  '`mirror status` (running)': () => time([program, 'status']),
  '`mirror status --json` (running)': () => time([program, 'status', '--json']),
  '`mirror --help`': () => time([program, '--help']),
}
const ups = []
try {
  for (let round = 0; round < 5; round++) {
    ups.push(time([program, 'up', ...ports]))
    if (round < 4) time([program, 'down'])
  }
  const samples = Object.fromEntries(Object.keys(subjects).map((name) => [name, []]))
  // Alternating, so that a noisy minute hits every subject.
  for (let round = 0; round < rounds; round++) {
    for (const [name, measure] of Object.entries(subjects)) samples[name].push(measure())
  }
  const bare = median(samples['`node -e 0`'])
  const row = (name, values) =>
    `| ${name} | ${median(values).toFixed(0)} ms | ${(median(values) / bare).toFixed(2)} × |`
  const [cpu] = cpus()
  const text = [
    '# Results',
    '',
    `Medians of ${rounds} alternating rounds (\`mirror up\`: 5). Node ${process.version}, Linux ${release()}, ${cpus().length} cores (${cpu.model.trim()}), ${Math.round(totalmem() / 2 ** 30)} GiB, ${new Date().toISOString().slice(0, 10)}.`,
    '',
    '| what | time | beside `node -e 0` |',
    '|---|---|---|',
    ...Object.entries(samples).map(([name, values]) => row(name, values)),
    row('`mirror up`, until it answers', ups),
    '',
    ...(await benchPush()),
  ].join('\n')
  writeFileSync(join(root, 'bench', 'RESULTS.md'), text)
  process.stdout.write(text)
} finally {
  spawnSync(process.execPath, [program, 'down'], { env })
  rmSync(home, { recursive: true, force: true })
}
