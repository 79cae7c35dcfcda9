// Reads the operating system's figures on a process and its children.
import { readFileSync, readdirSync } from 'node:fs'
import { spawnSync } from 'node:child_process'

const ticksPerSecond = Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout) || 100

/** Sums the processor time of the process and its children, seconds.
 * @param {number} pid */
export function cpuSeconds(pid) {
  let ticks = 0
  for (const each of family(pid)) {
    const [, rest] = readFileSync(`/proc/${each}/stat`, 'utf8').split(/\) (?=\S )/)
    const fields = rest.split(' ')
    ticks += Number(fields[11]) + Number(fields[12])
  }
  return ticks / ticksPerSecond
}

/** Returns the highest peak memory of the process and its children, bytes.
 * @param {number} pid */
export function peakMemory(pid) {
  return Math.max(
    ...family(pid).map((each) => {
      const match = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${each}/status`, 'utf8'))
      return Number(match?.[1] ?? 0) * 1024
    }),
  )
}

function family(pid) {
  const children = readdirSync(`/proc/${pid}/task`).flatMap((task) =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  )
  return [pid, ...children.flatMap(family)]
}

/** @param {number[]} values */
export function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}
