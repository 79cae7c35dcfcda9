// Records for `watchLoop` how long the event loop of a server is blocked, ms; NODE_OPTIONS loads it into the server. On Linux it
// counts only the time that the thread ran, because other load of the machine delays the server, too.
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
  // Remove the signal last: the test reads the result when it is gone.
  rmSync(`${base}.end`)
}

setInterval(() => {
  const at = now()
  delays.push(at - last)
  if (++looks % 20 === 0) answer()
  last = now()
}, 5).unref()
