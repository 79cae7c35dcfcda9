import { MirrorError, errnoOf } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'
import { fitText } from './terminal.ts'
import type { Paint } from './paint.ts'

export interface ErrorStyle {
  readonly debug: boolean
  /** Of the terminal, if it is one. */
  readonly columns?: number | undefined
  /** Writes commands as the user calls them. */
  readonly named?: (text: string) => string
}

/** What happened and why, then what to do next. The stack only for who debugs the mirror itself. */
export function renderError(error: unknown, paint: Paint, { debug, columns, named = same }: ErrorStyle): string {
  const fit = (text: string) => fitText(named(redact(text)), columns)
  const message = fit(`mirror: ${error instanceof Error ? error.message : String(error)}`)
  const lines = [message.replace('mirror:', () => paint.red('mirror:'))]
  const hints = error instanceof MirrorError ? error.hints : bugHints(error)
  if (hints.length > 0) lines.push('', paint.bold('Next:'), ...hints.map((hint) => fit(`  ${hint}`)))
  if (debug && error instanceof Error) lines.push('', redact(error.stack ?? ''))
  return `${lines.join('\n')}\n`
}

/** Whether `DEBUG` names the mirror. */
export function isDebugging(env: Readonly<Record<string, string | undefined>>): boolean {
  return (env['DEBUG'] ?? '').split(/[\s,]+/).some((name) => name === '*' || name.startsWith('mirror'))
}

const same = (text: string) => text

function bugHints(error: unknown): string[] {
  const code = errnoOf(error)
  if (code === 'EMFILE') return ['ulimit -n 1024   (more open files, in a new shell)']
  if (code === 'ENFILE') return ['sysctl fs.file-max   (the limit of the system, which root can raise)']
  return code === undefined ? ['This is a bug in mirror; DEBUG=mirror* shows where'] : []
}
