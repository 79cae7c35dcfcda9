import { nearest } from '../config/schema.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'

/** What the arguments of the program ask for. */
export type CommandLine =
  | { readonly kind: 'version' }
  /** Of a command or a topic; undefined: of the whole program. */
  | { readonly kind: 'help'; readonly of: string | undefined }
  | { readonly kind: 'command'; readonly id: string; readonly args: readonly string[] }

/** The names that there are: `up`, `cache:ls`, and topics, `cache`. */
export interface CommandNames {
  readonly commands: readonly string[]
  readonly topics: readonly string[]
}

const helpFlags = ['--help', '-h']
const versionFlags = ['--version', '-v']

// What other programs of this kind call it.
const otherWords: Readonly<Record<string, string>> = {
  start: 'up',
  restart: 'up',
  stop: 'down',
  ps: 'status',
  list: 'ls',
}

/** Throws MirrorError (usage) that names what was probably meant. */
export function readCommandLine(args: readonly string[], names: CommandNames): CommandLine {
  const [first] = args
  if (first === 'version' || versionFlags.includes(first ?? '')) return { kind: 'version' }
  const end = args.indexOf('--')
  const ours = end === -1 ? args : args.slice(0, end)
  if (first === 'help' || ours.some((arg) => helpFlags.includes(arg))) {
    const words = wordsOf(ours.filter((arg) => !helpFlags.includes(arg) && arg !== 'help'))
    return { kind: 'help', of: words.length === 0 ? undefined : findNamed(words, names).id }
  }
  if (first === undefined) return { kind: 'help', of: undefined }
  const words = wordsOf(args)
  if (words.length === 0) throw strayFlag(args, names)
  const { id, used } = findNamed(words, names)
  const rest = args.slice(used)
  if (names.commands.includes(id)) return { kind: 'command', id, args: rest }
  if (rest.length === 0) return { kind: 'help', of: id }
  throw new MirrorError(
    `mirror ${id} needs a command: ${inTopic(id, names).join(', ')}.`,
    usage([`mirror ${id} --help`]),
  )
}

/** As the user writes it: `cache ls`. */
export function spoken(id: string): string {
  return id.replaceAll(':', ' ')
}

function wordsOf(args: readonly string[]): readonly string[] {
  const flag = args.findIndex((arg) => arg.startsWith('-'))
  return flag === -1 ? args : args.slice(0, flag)
}

/** The command or topic that the words begin with (`cache ls`; `cache:ls` is the same), and how many of them name it. */
function findNamed(words: readonly string[], names: CommandNames): { id: string; used: number } {
  const [first = '', second] = words
  if (names.commands.includes(first)) return { id: first, used: 1 }
  if (!names.topics.includes(first)) throw unknownCommand(words, names)
  if (second === undefined) return { id: first, used: 1 }
  const id = `${first}:${second}`
  if (names.commands.includes(id)) return { id, used: 2 }
  throw unknownCommand(words, names)
}

function unknownCommand(words: readonly string[], names: CommandNames): MirrorError {
  const meant = probablyMeant(words, names)
  const topic = names.topics.find((name) => name === words[0])
  const said = topic === undefined ? words[0]! : `${topic} ${words[1]!}`
  const question = meant.length === 0 ? '' : ` Did you mean ${meant.join(' or ')}?`
  const general = topic === undefined ? 'mirror --help' : `mirror ${topic} --help`
  return new MirrorError(
    `Unknown command: ${said}.${question}`,
    usage([...meant.map((command) => `mirror ${command}`), general, ...(topic === undefined ? [] : ['mirror --help'])]),
  )
}

/** The likeliest commands and topics, as the user writes them. */
function probablyMeant(words: readonly string[], names: CommandNames): string[] {
  const [first = '', second] = words[0]!.includes(':') ? words[0]!.split(':') : words
  if (names.topics.includes(first)) {
    const found = nearest(otherWords[second!] ?? second!, inTopic(first, names))
    return found === undefined ? [] : [`${first} ${found}`]
  }
  const top = [...names.commands.filter((id) => !id.includes(':')), ...names.topics, 'help', 'version']
  const word = otherWords[first] ?? first
  const found = nearest(word, top)
  if (found === undefined) return names.commands.filter((id) => id.endsWith(`:${word}`)).map(spoken)
  if (second === undefined || !names.topics.includes(found)) return [found]
  const inside = nearest(second, inTopic(found, names))
  return [inside === undefined ? found : `${found} ${inside}`]
}

function inTopic(topic: string, { commands }: CommandNames): string[] {
  return commands.filter((id) => id.startsWith(`${topic}:`)).map((id) => id.slice(topic.length + 1))
}

/** A flag where a command is expected. */
function strayFlag(args: readonly string[], names: CommandNames): MirrorError {
  const flag = args[0]!
  const at = args.findIndex((arg) => names.commands.includes(arg) || names.topics.includes(arg))
  if (at !== -1) {
    const sorted = [...args.slice(at), ...args.slice(0, at)].join(' ')
    return new MirrorError(`${flag} stands before the command: flags come after it.`, usage([`mirror ${sorted}`]))
  }
  const short = [...helpFlags, ...versionFlags].find((known) => known === flag.toLowerCase())
  const meant = short ?? nearest(flag, ['--help', '--version'])
  const question = meant === undefined ? '' : ` Did you mean ${meant}?`
  return new MirrorError(`Unknown flag: ${flag}.${question}`, usage(['mirror --help']))
}

function usage(hints: string[]) {
  return { exit: exitCode.usage, hints }
}
