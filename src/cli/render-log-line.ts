import { parseObject } from '../lib/json-object.ts'
import type { Paint } from './paint.ts'

/** A JSON line of the log as `12:03:04 info  the mirror is up  pid=7`; what is no such line, as it is. */
export function renderLogLine(line: string, paint: Paint): string {
  const fields = parseObject(line)
  if (fields === undefined) return line
  const { level, time, msg, ...others } = fields
  const clock = typeof time === 'string' ? localTime(time) : ''
  const word = typeof level === 'string' ? level : ''
  const color = word === 'error' ? paint.red : word === 'warn' ? paint.yellow : paint.green
  const rest = Object.entries(others).map(([name, value]) => paint.dim(` ${name}=${fieldText(value)}`))
  return `${paint.dim(clock)} ${color(word.padEnd(5))} ${fieldText(msg)}${rest.length > 0 ? ` ${rest.join('')}` : ''}`
}

function localTime(time: string): string {
  const date = new Date(time)
  return Number.isNaN(date.getTime()) ? time : date.toTimeString().slice(0, 8)
}

function fieldText(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? '')
  // A log repeats what strangers sent; a terminal must not take it for commands. Line ends of a stack may stay.
  return text.replaceAll(/[^\P{Cc}\n\t]/gu, '?')
}
