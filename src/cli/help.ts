import { stripVTControlCharacters } from 'node:util'
import type { Command } from '@oclif/core/command'
import { exitCode, MirrorError, findNearest } from '../lib/errors.ts'
import { type Colors, wrapText } from './terminal.ts'

/** Describes the program, its commands and topics, as help shows them. */
export interface ProgramDescription {
  /** Holds the name by which the user calls it: `mirror`. */
  readonly name: string
  readonly description: string
  /** Looks like `dev-mirror/1.0.0 linux-x64 node-v20.19.0`. */
  readonly version: string
  readonly commands: readonly Command.Cached[]
  readonly topics: readonly { readonly name: string; readonly description?: string | undefined }[]
}

interface HelpStyle {
  /** Counts the columns of the terminal. */
  readonly width: number
  readonly colors: Colors
}

/** Limits the columns of a name beside its description; a longer name gets its own line. */
const maxNameLength = 32

type Row = readonly [left: string, right: string]

/** Limits the columns of a line; longer ones are hard to read. */
const maxWidth = 100
/** Reserves columns for descriptions beside their names; with fewer they go below. */
const minDescriptionWidth = 30

/** Renders the help of the program, a topic or a command. No line is wider than the terminal, and no word is cut. */
export function renderHelp(program: ProgramDescription, of: string | undefined, style: HelpStyle): string {
  const width = Math.min(style.width, maxWidth)
  const parts =
    of === undefined
      ? renderRootHelp(program, width)
      : (renderCommandHelp(program, of, width) ?? renderTopicHelp(program, of, width))
  return parts
    .flatMap(({ title, lines }) =>
      lines.length === 0 ? [] : [[...(title === undefined ? [] : [style.colors.bold(title)]), ...lines].join('\n')],
    )
    .join('\n\n')
}

interface Part {
  readonly title?: string
  readonly lines: readonly string[]
}

function renderRootHelp({ name, description, version, commands, topics }: ProgramDescription, width: number): Part[] {
  const top = commands.filter(({ id }) => !id.includes(':'))
  return [
    { lines: wrapText(description, width) },
    { title: 'VERSION', lines: wrapText(version, width, '  ') },
    { title: 'USAGE', lines: [`  $ ${name} COMMAND`] },
    {
      title: 'TOPICS',
      lines: renderRows(
        topics.map((topic) => [topic.name, topic.description ?? '']),
        width,
      ),
    },
    { title: 'COMMANDS', lines: renderRows(top.map(toCommandRow), width) },
    { lines: wrapText(`\`${name} COMMAND --help\` shows the flags of a command, and examples.`, width) },
  ]
}

function renderTopicHelp({ name: program, commands, topics }: ProgramDescription, name: string, width: number): Part[] {
  const inside = commands.filter(({ id }) => id.startsWith(`${name}:`))
  return [
    { lines: wrapText(topics.find((topic) => topic.name === name)?.description ?? '', width) },
    { title: 'USAGE', lines: [`  $ ${program} ${name} COMMAND`] },
    { title: 'COMMANDS', lines: renderRows(inside.map(toCommandRow), width) },
  ]
}

function renderCommandHelp({ name, commands }: ProgramDescription, id: string, width: number): Part[] | undefined {
  const command = commands.find((candidate) => candidate.id === id)
  if (command === undefined) return undefined
  const args = Object.values(command.args).filter(({ hidden }) => hidden !== true)
  const flags = Object.values(command.flags).filter(({ hidden }) => hidden !== true)
  const more = command.strict === false ? '...' : ''
  const renderArgument = (arg: Command.Arg.Cached) =>
    arg.required === true ? `${arg.name.toUpperCase()}${more}` : `[${arg.name.toUpperCase()}${more}]`
  const usage = [name, toTypedName(id), ...args.map(renderArgument), ...(flags.length === 0 ? [] : ['[FLAGS]'])].join(
    ' ',
  )
  return [
    { lines: wrapText(command.summary ?? '', width) },
    { title: 'USAGE', lines: wrapCommand(`$ ${usage}`, width) },
    {
      title: 'ARGUMENTS',
      lines: renderRows(
        args.map((arg): Row => [renderArgument(arg), arg.description ?? '']),
        width,
      ),
    },
    { title: 'FLAGS', lines: renderRows(toFlagRows(flags), width) },
    {
      title: 'DESCRIPTION',
      lines: (command.description ?? '').split('\n').flatMap((text) => wrapText(text, width, '  ')),
    },
    { title: 'EXAMPLES', lines: renderExamples(command, name).flatMap((text) => wrapCommand(`$ ${text}`, width)) },
  ]
}

function toCommandRow({ id, summary }: Command.Cached): Row {
  return [toTypedName(id), summary ?? '']
}

function toFlagRows(flags: readonly Command.Flag.Cached[]): Row[] {
  const isShort = flags.some(({ char }) => char !== undefined)
  return flags
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .map((flag) => {
      const short = flag.char === undefined ? (isShort ? '    ' : '') : `-${flag.char}, `
      return [`${short}--${flag.name}${renderFlagValue(flag)}`, describeFlag(flag)]
    })
}

/** Renders the value of a flag after its name: ` FILE`. */
export function renderFlagValue(flag: Command.Flag.Cached): string {
  if (flag.type === 'boolean') return ''
  const { helpValue, multiple } = flag
  const value = helpValue === undefined ? (flag.options?.join('|') ?? 'VALUE') : [helpValue].flat().join(' ')
  return ` ${value}${multiple === true ? '...' : ''}`
}

/** Describes a flag, with its default, the flags that it excludes or needs, and its variable. */
export function describeFlag(flag: Command.Flag.Cached): string {
  const parts = [flag.description ?? '']
  if (flag.type === 'option' && flag.default !== undefined) parts.push(`(default ${String(flag.default)})`)
  const others = (flag.exclusive ?? []).flatMap((other) => (typeof other === 'string' ? [`--${other}`] : []))
  if (others.length > 0) parts.push(`[not with ${others.join(', ')}]`)
  const needed = (flag.dependsOn ?? []).flatMap((other) => (typeof other === 'string' ? [`--${other}`] : []))
  if (needed.length > 0) parts.push(`[only with ${needed.join(', ')}]`)
  if (flag.env !== undefined) parts.push(`[env: ${flag.env}]`)
  // Keep a bracket on one line.
  return parts.map((text) => (text.startsWith('[') ? text.replaceAll(' ', '\u00a0') : text)).join(' ')
}

/** Renders the examples of a command, as the user types them. */
export function renderExamples({ examples = [], id }: Command.Cached, name: string): string[] {
  return examples.flatMap((example) =>
    typeof example === 'string'
      ? [example.replaceAll('<%= config.bin %>', name).replaceAll('<%= command.id %>', toTypedName(id))]
      : [],
  )
}

const hangingIndent = '      '

/** Wraps a command so that it still works when it is copied. */
function wrapCommand(command: string, width: number): string[] {
  const availableWidth = width - hangingIndent.length - 2
  const together = command.replaceAll(/( --?[\w-]+) ([\w./]\S*)/g, (both, flag: string, value: string) =>
    both.length - 1 <= availableWidth ? `${flag}\u00a0${value}` : both,
  )
  const lines = wrapText(together, width - 2, '  ', hangingIndent)
  return lines.map((line, at) => (at === lines.length - 1 ? line : `${line} \\`))
}

function renderRows(rows: readonly Row[], width: number): string[] {
  const lengths = rows.map(([left]) => left.length)
  const column = Math.max(...lengths.filter((length) => length <= maxNameLength)) + 4
  // Below flags that leave room for a short one, descriptions are further to the right.
  const below = rows.some(([left]) => left.startsWith(' ')) ? ' '.repeat(10) : ' '.repeat(6)
  return rows.flatMap(([left, right]) => {
    if (width - column < minDescriptionWidth) return [...fitName(left, width), ...wrapText(right, width, below)]
    const [first = '', ...others] = wrapText(right, width, ' '.repeat(column))
    if (left.length > maxNameLength) return [`  ${left}`, first, ...others]
    return [`  ${left}`.padEnd(column) + first.slice(column), ...others]
  })
}

/** Puts the value of a flag on a line of its own where both do not fit: `--template`, `compose|systemd|launchd|caddy|k8s`. */
function fitName(name: string, width: number): string[] {
  const at = name.lastIndexOf(' ')
  if (name.length + 2 <= width || at === -1) return [`  ${name}`]
  return [`  ${name.slice(0, at)}`, `      ${name.slice(at + 1)}`]
}

/** Holds the parsed command line. */
type CommandLine =
  | { readonly kind: 'version' }
  /** Is the command or topic; undefined for the whole program. */
  | { readonly kind: 'help'; readonly of: string | undefined }
  | { readonly kind: 'command'; readonly id: string; readonly args: readonly string[] }

/** Holds the names of all commands (`up`, `cache:ls`) and topics (`cache`). */
interface CommandNames {
  readonly commands: readonly string[]
  readonly topics: readonly string[]
}

const helpFlags = ['--help', '-h']
const versionFlags = ['--version', '-v']

const noColorFlag = '--no-color'
const noColorAdvice = 'To print without colours, set NO_COLOR=1.'

/** Maps flags of docker and kubectl to those of this program. */
const flagSynonyms: Readonly<Record<string, string>> = { '--tail': '--lines' }

/** Maps names that other programs use to the names of this one. */
const synonyms: Readonly<Record<string, string>> = {
  start: 'up',
  stop: 'down',
  ps: 'status',
  list: 'ls',
}

/** Parses the arguments of the program. Throws a MirrorError (usage) that names the likely command. */
export function parseCommandLine(args: readonly string[], names: CommandNames): CommandLine {
  const [first] = args
  if (first === 'version' || versionFlags.includes(first ?? '')) return { kind: 'version' }
  const end = args.indexOf('--')
  const own = end === -1 ? args : args.slice(0, end)
  if (first === 'help' || own.some((arg) => helpFlags.includes(arg))) {
    const words = getLeadingWords(own.filter((arg) => !helpFlags.includes(arg) && arg !== 'help'))
    return { kind: 'help', of: words.length === 0 ? undefined : findNamed(words, names).id }
  }
  if (first === undefined) return { kind: 'help', of: undefined }
  const words = getLeadingWords(args)
  if (words.length === 0) throw createMisplacedFlagError(args, names)
  const { id, used } = findNamed(words, names)
  const rest = args.slice(used)
  if (names.commands.includes(id)) return { kind: 'command', id, args: rest }
  if (rest.length === 0) return { kind: 'help', of: id }
  throw new MirrorError(
    `mirror ${id} needs a command: ${listTopicCommands(id, names).join(', ')}.`,
    toUsageOptions([`mirror ${id} --help`]),
  )
}

/** Returns the name of a command as the user types it: `cache ls`. */
export function toTypedName(id: string): string {
  return id.replaceAll(':', ' ')
}

function getLeadingWords(args: readonly string[]): readonly string[] {
  const flag = args.findIndex((arg) => arg.startsWith('-'))
  return flag === -1 ? args : args.slice(0, flag)
}

/** Finds the command or topic that the words begin with (`cache ls`, or `cache:ls`), and how many of the words name it. */
function findNamed(words: readonly string[], names: CommandNames): { id: string; used: number } {
  const [first = '', second] = words
  if (names.commands.includes(first)) return { id: first, used: 1 }
  if (!names.topics.includes(first)) throw createUnknownCommandError(words, names)
  if (second === undefined) return { id: first, used: 1 }
  const id = `${first}:${second}`
  if (names.commands.includes(id)) return { id, used: 2 }
  throw createUnknownCommandError(words, names)
}

function createUnknownCommandError(words: readonly string[], names: CommandNames): MirrorError {
  if (words[0] === 'restart')
    return new MirrorError(
      'Unknown command: restart. Stop the mirror and start it again.',
      toUsageOptions(['mirror down && mirror up', 'mirror --help']),
    )
  const suggested = suggestCommands(words, names)
  const topic = names.topics.find((name) => name === words[0])
  const typed = topic === undefined ? words[0]! : `${topic} ${words[1]!}`
  const question = suggested.length === 0 ? '' : ` Did you mean ${suggested.join(' or ')}?`
  const general = topic === undefined ? 'mirror --help' : `mirror ${topic} --help`
  return new MirrorError(
    `Unknown command: ${typed}.${question}`,
    toUsageOptions([
      ...suggested.map((command) => `mirror ${command}`),
      general,
      ...(topic === undefined ? [] : ['mirror --help']),
    ]),
  )
}

/** Suggests the commands and topics that the user most likely means, as the user types them. */
function suggestCommands(words: readonly string[], names: CommandNames): string[] {
  const [first = '', second] = words[0]!.includes(':') ? words[0]!.split(':') : words
  if (names.topics.includes(first)) {
    const found = findNearest(synonyms[second!] ?? second!, listTopicCommands(first, names))
    return found === undefined ? [] : [`${first} ${found}`]
  }
  const top = [...names.commands.filter((id) => !id.includes(':')), ...names.topics, 'help', 'version']
  const word = synonyms[first] ?? first
  const found = findNearest(word, top)
  if (found === undefined) return names.commands.filter((id) => id.endsWith(`:${word}`)).map(toTypedName)
  if (second === undefined || !names.topics.includes(found)) return [found]
  const inside = findNearest(second, listTopicCommands(found, names))
  return [inside === undefined ? found : `${found} ${inside}`]
}

function listTopicCommands(topic: string, { commands }: CommandNames): string[] {
  return commands.filter((id) => id.startsWith(`${topic}:`)).map((id) => id.slice(topic.length + 1))
}

/** Creates the error for a flag in the place of a command. */
function createMisplacedFlagError(args: readonly string[], names: CommandNames): MirrorError {
  const flag = args[0]!
  if (flag === noColorFlag)
    return new MirrorError(
      `Unknown flag: ${flag}. ${noColorAdvice}`,
      toUsageOptions([`NO_COLOR=1 mirror ${args.slice(1).join(' ') || '--help'}`]),
    )
  const at = args.findIndex((arg) => names.commands.includes(arg) || names.topics.includes(arg))
  if (at !== -1) {
    const sorted = [...args.slice(at), ...args.slice(0, at)].join(' ')
    return new MirrorError(`${flag} is before the command: put flags after it.`, toUsageOptions([`mirror ${sorted}`]))
  }
  const short = [...helpFlags, ...versionFlags].find((known) => known === flag.toLowerCase())
  const suggestion = short ?? findNearest(flag, ['--help', '--version'])
  const question = suggestion === undefined ? '' : ` Did you mean ${suggestion}?`
  return new MirrorError(`Unknown flag: ${flag}.${question}`, toUsageOptions(['mirror --help']))
}

function toUsageOptions(hints: string[]) {
  return { exit: exitCode.usage, hints }
}

/** Holds an error of the framework about flags or arguments. */
interface FrameworkError extends Error {
  /** Holds the unknown flags, as the user has typed them. */
  readonly flags?: unknown
  readonly args?: unknown
}

/** Puts an error of the framework into this program's form: the problem, the likely flag, and the help to read. */
export function toUsageError(error: FrameworkError, id: string, flags: readonly string[]): MirrorError {
  const hints = [`mirror ${toTypedName(id)} --help`]
  const other = id === 'configure' ? /^Unexpected arguments?: (.*)/.exec(toPlainMessage(error))?.[1] : undefined
  if (other !== undefined)
    return new MirrorError(`Name one client at a time, not also ${other}`, {
      exit: exitCode.usage,
      hints: ['mirror configure CLIENT', 'mirror configure   (offers all clients of this machine)'],
    })
  return new MirrorError(
    describeUnknownFlags(error, flags) ?? describeMissingArguments(error) ?? toPlainMessage(error),
    {
      exit: exitCode.usage,
      hints,
    },
  )
}

function describeUnknownFlags({ flags: typedFlags }: FrameworkError, flags: readonly string[]): string | undefined {
  if (!Array.isArray(typedFlags)) return undefined
  const names = typedFlags.map(String)
  const known = [...flags, 'help'].map((name) => `--${name}`)
  const suggestion = names.flatMap((name) => {
    const [bare = name] = name.split('=', 1)
    const synonym = flagSynonyms[bare]
    return (synonym !== undefined && known.includes(synonym) ? synonym : findNearest(bare, known)) ?? []
  })
  const question = names.includes(noColorFlag)
    ? ` ${noColorAdvice}`
    : suggestion.length === 0
      ? ''
      : ` Did you mean ${suggestion.join(', ')}?`
  return `Unknown flag${names.length === 1 ? '' : 's'}: ${names.join(', ')}.${question}`
}

function describeMissingArguments({ args }: FrameworkError): string | undefined {
  if (!Array.isArray(args)) return undefined
  const missing = args.flatMap((arg: unknown) =>
    typeof arg === 'object' && arg !== null && 'name' in arg ? [arg as { name: string; description?: string }] : [],
  )
  if (missing.length === 0) return undefined
  const descriptions = missing.map(({ name, description = '' }) => `${name.toUpperCase()} (${description})`)
  return `Missing argument: ${descriptions.join(', ')}.`
}

function toPlainMessage({ message }: FrameworkError): string {
  const plain = stripVTControlCharacters(message)
    .replaceAll(/\s*See more help with --help\s*/g, ' ')
    .trim()
    .replace(/^The following errors? occurred:\s*/, '')
    .replaceAll(/\s*\n\s*/g, ' ')
  const choice = /^Expected (?:--[\w-]+=)?(.*) to be one of: (.+)$/s.exec(plain)
  const suggestion = choice === null ? undefined : findNearest(choice[1]!, choice[2]!.split(', '))
  if (suggestion !== undefined) return `${plain}. Did you mean ${suggestion}?`
  const reworded = plain
    .replace(/^Expected (--[\w-]+)=(.*) to be one of: (.+)$/, '$1 takes one of $3, not $2')
    .replace(/^Flag (--[\w-]+) expects one of these values: (.+)$/, '$1 takes one of $2')
    .replace(/^Parsing (--[\w-]+) Expected an integer but received: /, '$1 takes an integer, not ')
    .replace(
      /^Parsing (--[\w-]+) Expected an integer (less|greater) than or equal to (-?\d+) but received: (.*)$/,
      (_, flag, than, limit, written) =>
        `${flag} takes an integer of at ${than === 'less' ? 'most' : 'least'} ${limit}, not ${written}`,
    )
    .replace(/^Parsing (--[\w-]+) (?=")/, '$1: ')
    .replaceAll(/(--[\w-]+)(?:=\S*)? cannot also be provided when using (--[\w-]+)/g, '$1 and $2 exclude each other')
    .replaceAll(/All of the following must be provided when using (--[\w-]+): /g, '$1 needs ')
  return /[.?!]$/.test(reworded) ? reworded : `${reworded}.`
}
