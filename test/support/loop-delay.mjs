// Loaded into a server by NODE_OPTIONS: writes how long its event loop was kept between two looks, in ms, to LOOP_DELAY_FILE, and
// begins again whenever that file is removed. On Linux what counts is the time that the thread ran: a machine that is busy with
// something else makes everybody wait, and that is not the server's doing.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'

const file = process.env['LOOP_DELAY_FILE']
const isLinux = process.platform === 'linux'
const now = () =>
  isLinux ? Number(readFileSync('/proc/thread-self/schedstat', 'latin1').split(' ', 1)[0]) / 1e6 : performance.now()
let delays = []
let last = now()
let looks = 0

function write() {
  if (!existsSync(file)) delays = []
  const sorted = delays.toSorted((a, b) => a - b)
  writeFileSync(file, JSON.stringify({ p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0, max: sorted.at(-1) ?? 0 }))
}

write()
setInterval(() => {
  const at = now()
  delays.push(at - last)
  if (++looks % 20 === 0) write()
  last = now()
}, 5).unref()
