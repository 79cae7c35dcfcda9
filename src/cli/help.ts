import type { Command } from '@oclif/core/command'
import { spoken } from './command-line.ts'
import type { Paint } from './paint.ts'
import { wrapText } from './terminal.ts'

/** What the program says of itself. */
export interface ProgramDescription {
  /** As the user calls it: `mirror`. */
  readonly name: string
  readonly description: string
  /** `dev-mirror/1.0.0 linux-x64 node-v20.19.0` */
  readonly version: string
  readonly commands: readonly Command.Cached[]
  readonly topics: readonly { readonly name: string; readonly description?: string | undefined }[]
}

export interface HelpStyle {
  /** Of the terminal, in columns. */
  readonly width: number
  readonly paint: Paint
}

type Row = readonly [left: string, right: string]

/** Longer lines are hard to read. */
const widest = 100
/** So narrow a column of descriptions goes below what it describes. */
const narrowest = 30

/** Help on the program, a topic or a command. No line is wider than the terminal, and no word is cut. */
export function renderHelp(program: ProgramDescription, of: string | undefined, style: HelpStyle): string {
  const width = Math.min(style.width, widest)
  const parts =
    of === undefined ? rootHelp(program, width) : (commandHelp(program, of, width) ?? topicHelp(program, of, width))
  return parts
    .flatMap(({ title, lines }) =>
      lines.length === 0 ? [] : [[...(title === undefined ? [] : [style.paint.bold(title)]), ...lines].join('\n')],
    )
    .join('\n\n')
}

interface Part {
  readonly title?: string
  readonly lines: readonly string[]
}

function rootHelp({ name, description, version, commands, topics }: ProgramDescription, width: number): Part[] {
  const top = commands.filter(({ id }) => !id.includes(':'))
  return [
    { lines: wrapText(description, width) },
    { title: 'VERSION', lines: wrapText(version, width, '  ') },
    { title: 'USAGE', lines: [`  $ ${name} COMMAND`] },
    {
      title: 'TOPICS',
      lines: table(
        topics.map((topic) => [topic.name, topic.description ?? '']),
        width,
      ),
    },
    { title: 'COMMANDS', lines: table(top.map(commandRow), width) },
    { lines: wrapText(`\`${name} COMMAND --help\` shows the flags of a command, and examples.`, width) },
  ]
}

function topicHelp({ name: program, commands, topics }: ProgramDescription, name: string, width: number): Part[] {
  const inside = commands.filter(({ id }) => id.startsWith(`${name}:`))
  return [
    { lines: wrapText(topics.find((topic) => topic.name === name)?.description ?? '', width) },
    { title: 'USAGE', lines: [`  $ ${program} ${name} COMMAND`] },
    { title: 'COMMANDS', lines: table(inside.map(commandRow), width) },
  ]
}

function commandHelp({ name, commands }: ProgramDescription, id: string, width: number): Part[] | undefined {
  const command = commands.find((candidate) => candidate.id === id)
  if (command === undefined) return undefined
  const args = Object.values(command.args).filter(({ hidden }) => hidden !== true)
  const flags = Object.values(command.flags).filter(({ hidden }) => hidden !== true)
  const more = command.strict === false ? '...' : ''
  const argument = (arg: Command.Arg.Cached) =>
    arg.required === true ? `${arg.name.toUpperCase()}${more}` : `[${arg.name.toUpperCase()}${more}]`
  const usage = [name, spoken(id), ...args.map(argument), ...(flags.length === 0 ? [] : ['[FLAGS]'])].join(' ')
  return [
    { lines: wrapText(command.summary ?? '', width) },
    { title: 'USAGE', lines: wrapCommand(`$ ${usage}`, width) },
    {
      title: 'ARGUMENTS',
      lines: table(
        args.map((arg): Row => [argument(arg), arg.description ?? '']),
        width,
      ),
    },
    { title: 'FLAGS', lines: table(flagRows(flags), width) },
    {
      title: 'DESCRIPTION',
      lines: (command.description ?? '').split('\n').flatMap((text) => wrapText(text, width, '  ')),
    },
    { title: 'EXAMPLES', lines: examplesOf(command, name).flatMap((text) => wrapCommand(`$ ${text}`, width)) },
  ]
}

function commandRow({ id, summary }: Command.Cached): Row {
  return [spoken(id), summary ?? '']
}

function flagRows(flags: readonly Command.Flag.Cached[]): Row[] {
  const isShort = flags.some(({ char }) => char !== undefined)
  return flags
    .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    .map((flag) => {
      const short = flag.char === undefined ? (isShort ? '    ' : '') : `-${flag.char}, `
      return [`${short}--${flag.name}${valueOf(flag)}`, aboutFlag(flag)]
    })
}

function valueOf(flag: Command.Flag.Cached): string {
  if (flag.type === 'boolean') return ''
  const { helpValue, multiple } = flag
  return `=${helpValue === undefined ? 'VALUE' : [helpValue].flat().join(' ')}${multiple === true ? '...' : ''}`
}

function aboutFlag(flag: Command.Flag.Cached): string {
  const about = [flag.description ?? '']
  if (flag.type === 'option' && flag.options !== undefined) about.push(`(one of: ${flag.options.join(', ')})`)
  if (flag.type === 'option' && flag.default !== undefined) about.push(`[default: ${String(flag.default)}]`)
  const others = (flag.exclusive ?? []).flatMap((other) => (typeof other === 'string' ? [`--${other}`] : []))
  if (others.length > 0) about.push(`[not with ${others.join(', ')}]`)
  const needed = (flag.dependsOn ?? []).flatMap((other) => (typeof other === 'string' ? [`--${other}`] : []))
  if (needed.length > 0) about.push(`[only with ${needed.join(', ')}]`)
  if (flag.env !== undefined) about.push(`[env: ${flag.env}]`)
  // A bracket stays on one line.
  return about.map((text) => (text.startsWith('[') ? text.replaceAll(' ', '\u00a0') : text)).join(' ')
}

function examplesOf({ examples = [], id }: Command.Cached, name: string): string[] {
  return examples.flatMap((example) =>
    typeof example === 'string'
      ? [example.replaceAll('<%= config.bin %>', name).replaceAll('<%= command.id %>', spoken(id))]
      : [],
  )
}

const hangingIndent = '      '

/** A command that is copied from here works, also where it takes several lines. */
function wrapCommand(command: string, width: number): string[] {
  const room = width - hangingIndent.length - 2
  const together = command.replaceAll(/( --?[\w-]+) ([\w./]\S*)/g, (both, flag: string, value: string) =>
    both.length - 1 <= room ? `${flag}\u00a0${value}` : both,
  )
  const lines = wrapText(together, width - 2, '  ', hangingIndent)
  return lines.map((line, at) => (at === lines.length - 1 ? line : `${line} \\`))
}

function table(rows: readonly Row[], width: number): string[] {
  const column = Math.max(...rows.map(([left]) => left.length)) + 4
  return rows.flatMap(([left, right]) => {
    if (width - column < narrowest) return [`  ${left}`, ...wrapText(right, width, '      ')]
    const [first = '', ...others] = wrapText(right, width, ' '.repeat(column))
    return [`  ${left}`.padEnd(column) + first.slice(column), ...others]
  })
}
