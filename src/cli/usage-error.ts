import { nearest } from '../config/schema.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { spoken } from './command-line.ts'

/** A complaint of the framework about flags or arguments. */
export interface FrameworkComplaint extends Error {
  /** Flags that there are not, as they were written. */
  readonly flags?: unknown
  /** Arguments that are missing. */
  readonly args?: unknown
}

/** Says it in our form: what is wrong with it, what was probably meant, and where to read on. */
export function usageError(error: FrameworkComplaint, id: string, flags: readonly string[]): MirrorError {
  const hints = [`mirror ${spoken(id)} --help`]
  return new MirrorError(unknownFlags(error, flags) ?? missingArguments(error) ?? plainMessage(error), {
    exit: exitCode.usage,
    hints,
  })
}

function unknownFlags({ flags: written }: FrameworkComplaint, flags: readonly string[]): string | undefined {
  if (!Array.isArray(written)) return undefined
  const names = written.map(String)
  const known = [...flags, 'help'].map((name) => `--${name}`)
  const meant = names.flatMap((name) => nearest(name.replace(/=.*$/s, ''), known) ?? [])
  const question = meant.length === 0 ? '' : ` Did you mean ${meant.join(', ')}?`
  return `Unknown flag${names.length === 1 ? '' : 's'}: ${names.join(', ')}.${question}`
}

function missingArguments({ args }: FrameworkComplaint): string | undefined {
  if (!Array.isArray(args)) return undefined
  const missing = args.flatMap((arg: unknown) =>
    typeof arg === 'object' && arg !== null && 'name' in arg ? [arg as { name: string; description?: string }] : [],
  )
  if (missing.length === 0) return undefined
  const said = missing.map(({ name, description = '' }) => `${name.toUpperCase()} (${description})`)
  return `Missing argument: ${said.join(', ')}.`
}

function plainMessage({ message }: FrameworkComplaint): string {
  const plain = message
    .replaceAll(/\s*See more help with --help\s*/g, ' ')
    .trim()
    .replace(/^The following errors? occurred:\s*/, '')
    .replaceAll(/\s*\n\s*/g, ' ')
  const choice = /^Expected (?:--[\w-]+=)?(.*) to be one of: (.+)$/s.exec(plain)
  const meant = choice === null ? undefined : nearest(choice[1]!, choice[2]!.split(', '))
  if (meant !== undefined) return `${plain}. Did you mean ${meant}?`
  const said = plain
    .replace(/^Expected (--[\w-]+)=(.*) to be one of: (.+)$/, '$1 takes one of $3, not $2')
    .replace(/^Flag (--[\w-]+) expects one of these values: (.+)$/, '$1 takes one of $2')
    .replace(/^Parsing (--[\w-]+) Expected an integer but received: /, '$1 takes an integer, not ')
    .replace(
      /^Parsing (--[\w-]+) Expected an integer (less|greater) than or equal to (-?\d+) but received: (.*)$/,
      (_, flag, than, limit, written) =>
        `${flag} takes an integer of at ${than === 'less' ? 'most' : 'least'} ${limit}, not ${written}`,
    )
    .replace(/^Parsing (--[\w-]+) (?=")/, '$1: ')
    .replaceAll(/(--[\w-]+)=true (cannot also be provided)/g, '$1 $2')
    .replaceAll(/All of the following must be provided when using (--[\w-]+): /g, '$1 needs ')
  return /[.?!]$/.test(said) ? said : `${said}.`
}
