// Loaded into a server by NODE_OPTIONS: notes how long its event loop was kept between two looks, ms, for `watchLoop`. On Linux
// what counts is the time that the thread ran: a machine that is busy with something else makes everybody wait, and that is not the
// server's doing.
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'

const base = process.env['LOOP_DELAY_FILE']
const isLinux = process.platform === 'linux'
const now = () =>
  isLinux ? Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ', 1)[0]) / 1e6 : performance.now()
let delays = []
let last = now()
let looks = 0

function answer() {
  if (existsSync(`${base}.begin`)) {
    delays = []
    rmSync(`${base}.begin`)
  }
  if (!existsSync(`${base}.end`)) return
  const sorted = delays.toSorted((a, b) => a - b)
  writeFileSync(base, JSON.stringify({ p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0, max: sorted.at(-1) ?? 0 }))
  // Whoever asked reads what is there when this is gone.
  rmSync(`${base}.end`)
}

setInterval(() => {
  const at = now()
  delays.push(at - last)
  if (++looks % 20 === 0) answer()
  last = now()
}, 5).unref()
