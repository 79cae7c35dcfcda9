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
  return Math.max(...family(pid).map((each) => readMemory(each, 'VmHWM')))
}

/** Returns the current memory of the process, bytes.
 * @param {number} pid */
export function currentMemory(pid) {
  return readMemory(pid, 'VmRSS')
}

function readMemory(pid, field) {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number(match?.[1] ?? 0) * 1024
}

/**
 * Returns the bytes that the process has written: by all its calls, to sockets too, and to the disk, in whole pages.
 * @param {number} pid
 */
export function writtenBytes(pid) {
  const text = readFileSync(`/proc/${pid}/io`, 'utf8')
  const read = (field) => Number(new RegExp(`^${field}: (\\d+)`, 'm').exec(text)[1])
  return { calls: read('wchar'), disk: read('write_bytes') }
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
