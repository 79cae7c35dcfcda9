import { readFileSync, writeSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Manifest, PJSON } from '@oclif/core/interfaces'
import { clientNames } from '../clients/types.ts'
import { getErrno } from '../lib/errors.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { createNameSource, type NameSource } from './completion-names.ts'

/** Holds what the completion of a command line needs. */
export interface CompletionSources {
  readonly commands: Manifest['commands']
  readonly topics: Readonly<Record<string, { readonly description?: string | undefined }>>
  readonly names: NameSource
  /** Lists the ids of the checks of `mirror doctor`. */
  readonly checks: readonly string[]
}

export interface Candidate {
  readonly value: string
  readonly description?: string | undefined
}

/** Holds the words that fit; `files`: the shell completes the path of a file. */
export interface Completion {
  readonly candidates: readonly Candidate[]
  readonly files?: true
}

type Command = Manifest['commands'][string]
type Flag = Command['flags'][string]

const none: Completion = { candidates: [] }
const files: Completion = { candidates: [], files: true }
const programFlags: readonly Candidate[] = [
  { value: '--help', description: 'show help' },
  { value: '--version', description: 'show the version' },
]
/** Lists the platforms of most images. */
const platforms = [
  'linux/amd64',
  'linux/arm64',
  'linux/arm/v7',
  'linux/arm/v6',
  'linux/386',
  'linux/ppc64le',
  'linux/riscv64',
  'linux/s390x',
]
/** Limits the candidates, because more help nobody. */
const maxCandidates = 1000
/** Matches what no shell changes when it inserts it. Names come from registries. */
const plainWord = /^[\w.,@:/+=-]+$/

/**
 * Completes a command line of this process's arguments for a shell. This file is an entry of its own that loads neither the framework
 * nor a command, because a user waits for it with each press of the key.
 */
export async function main(args = process.argv.slice(3)): Promise<void> {
  try {
    const [shell = '', ...rest] = args
    const root = findPackageRoot()
    const read = (file: string) => JSON.parse(readFileSync(join(root, file), 'utf8')) as unknown
    const topics = (read('package.json') as PJSON).oclif.topics ?? {}
    const { platform, env } = process
    const names = createNameSource({ platform, env, homedir: homedir(), cwd: process.cwd() })
    const { commands, checks = [] } = read('oclif.manifest.json') as Manifest & { checks?: string[] }
    const sources = { commands, topics, names, checks }
    writeAnswer(Buffer.from(await answerShell(shell, rest, sources)))
  } catch {
    // A message would appear in the middle of the line that the user types.
  }
}

/** Writes to the standard output without its stream, which takes longer to load than all of this file. */
function writeAnswer(answer: Buffer): void {
  let written = 0
  try {
    while (written < answer.length) written += writeSync(1, answer, written)
  } catch (error) {
    // A pipe that does not block is full; the stream waits for its reader.
    if (getErrno(error) === 'EAGAIN') process.stdout.write(answer.subarray(written))
  }
}

/** Returns the lines for the completion script of a shell: a candidate each, or `:files`. */
export async function answerShell(shell: string, args: readonly string[], sources: CompletionSources): Promise<string> {
  const value = (name: string) => args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3)
  if (shell === 'bash') {
    const { words, current, isQuoted } = splitLine(value('line') ?? '')
    const completion = await complete(words.slice(1), current, sources)
    // Readline replaces only what follows the last of these characters, except within quotes.
    const breaks = (value('breaks') ?? '').split('')
    const kept = isQuoted ? 0 : Math.max(...breaks.map((character) => current.lastIndexOf(character)), -1) + 1
    return toLines(completion, (candidate) => candidate.value.slice(kept))
  }
  const end = args.indexOf('--')
  const words = end === -1 ? [] : args.slice(end + 1)
  const current = (value('current') ?? '').replace(/^["']/, '')
  return toLines(await complete(words, current, sources), ({ value: text, description }) =>
    description === undefined ? text : `${text}\t${description}`,
  )
}

function toLines({ candidates, files: isFiles }: Completion, format: (candidate: Candidate) => string): string {
  const lines = candidates.slice(0, maxCandidates).map(format)
  return [...(isFiles ? [':files'] : []), ...lines].map((line) => `${line}\n`).join('')
}

/** Completes `current` after the words that follow the program's name. */
export async function complete(
  words: readonly string[],
  current: string,
  sources: CompletionSources,
): Promise<Completion> {
  const { commands, topics } = sources
  const [first, ...rest] = words
  if (first === undefined && current.startsWith('-')) return filter(programFlags, current)
  if (first === undefined) return filter(listCommands(sources), current)
  const inTopic = topics[first] !== undefined && commands[first] === undefined
  if (inTopic && rest[0] === undefined) return filter(listTopicCommands(first, commands), current)
  // Help takes the name of a command, and nothing that the command itself takes.
  if (first === 'help') return rest.length < 2 ? completeHelp(rest, current, sources) : none
  const command = commands[inTopic ? `${first}:${rest[0]}` : first]
  return command === undefined ? none : completeCommand(command, inTopic ? rest.slice(1) : rest, current, sources)
}

function completeHelp([topic]: readonly string[], current: string, sources: CompletionSources): Completion {
  const { commands, topics } = sources
  if (topic === undefined) return filter(listCommands(sources), current)
  return topics[topic] === undefined ? none : filter(listTopicCommands(topic, commands), current)
}

async function completeCommand(
  command: Command,
  words: readonly string[],
  current: string,
  sources: CompletionSources,
): Promise<Completion> {
  const flags = Object.values(command.flags).filter(({ hidden }) => !hidden)
  const used = readWords(words, flags)
  if (used.open) return completeValue(used.open, current, sources)
  const [, name, text] = /^--([\w-]+)=(.*)$/s.exec(current) ?? []
  const assigned = used.isEnded ? undefined : flags.find((flag) => flag.name === name && flag.type === 'option')
  if (assigned) {
    const { candidates, ...rest } = await completeValue(assigned, text ?? '', sources)
    return {
      ...rest,
      candidates: candidates.map((candidate) => ({ ...candidate, value: `--${name}=${candidate.value}` })),
    }
  }
  if (current.startsWith('-') && !used.isEnded) {
    const open = flags.filter((flag) => !used.flags.has(flag) || (flag.type === 'option' && flag.multiple === true))
    const help = { value: '--help', description: 'show help' }
    return filter([...open.map((flag) => ({ value: `--${flag.name}`, description: flag.description })), help], current)
  }
  const completion = await completeArgument(command, used.positions.length, current, sources.names)
  // A command that takes many names takes each of them once.
  const isNew = ({ value }: Candidate) => !used.positions.includes(value)
  return { ...completion, candidates: completion.candidates.filter(isNew) }
}

/** Reads the words before the current one: the flags, and one that still needs its value. */
function readWords(words: readonly string[], flags: readonly Flag[]) {
  const found = new Set<Flag>()
  let open: Flag | undefined
  const positions: string[] = []
  let isEnded = false
  for (const word of words) {
    if (open) {
      open = undefined
    } else if (isEnded || !word.startsWith('-') || word === '-') {
      positions.push(word)
    } else if (word === '--') {
      isEnded = true
    } else {
      const [name = ''] = word.split('=', 1)
      const flag = flags.find((known) => `--${known.name}` === name || (known.char && `-${known.char}` === name))
      if (flag) found.add(flag)
      if (flag?.type === 'option' && !word.includes('=')) open = flag
    }
  }
  return { flags: found, open, positions, isEnded }
}

async function completeValue(
  flag: Flag,
  current: string,
  { names, checks }: Pick<CompletionSources, 'names' | 'checks'>,
): Promise<Completion> {
  if (flag.type !== 'option') return none
  if (flag.options !== undefined) return filter(toCandidates(flag.options), current)
  if (flag.name === 'client') return filter(toCandidates(clientNames), current)
  if (flag.name === 'only') return filter(toCandidates(listCheckNames(checks, current)), current)
  const [means = ''] = [flag.helpValue].flat()
  if (means === 'FILE' || means === 'DIR') return files
  if (means === 'OS/ARCH') return filter(toCandidates(platforms), current)
  if (means.startsWith('HOST')) return filter(toCandidates(await names.upstreams()), current)
  return none
}

/** Lists what selects checks, after the commas of a list: their first parts and their ids. */
function listCheckNames(checks: readonly string[], current: string): string[] {
  const before = current.slice(0, current.lastIndexOf(',') + 1)
  const names = checks.flatMap((id) => id.split('.').map((_, at, parts) => parts.slice(0, at + 1).join('.')))
  return [...new Set(names)].map((name) => before + name)
}

async function completeArgument(
  command: Command,
  position: number,
  current: string,
  names: NameSource,
): Promise<Completion> {
  const args = Object.values(command.args)
  const arg = command.strict === false ? (args[position] ?? args.at(-1)) : args[position]
  if (arg === undefined) return none
  if (arg.options !== undefined) return filter(toCandidates(arg.options), current)
  const isRegistry = command.id.startsWith('registry:')
  if (arg.name === 'client') return filter(toCandidates(clientNames), current)
  if (arg.name === 'repository') return filter(toCandidates(toRepositories(await names.pushed())), current)
  if (arg.name === 'name' && isRegistry) return filter(toCandidates(await names.pushed()), current)
  if (arg.name === 'name') return filter(toCandidates(toShort(await names.cached())), current)
  if (arg.name === 'image') return filter(toCandidates(await listImages(current, names)), current)
  if (arg.name === 'file') return files
  return none
}

/** Lists the images of the cache and those of the registry at its address. Asks the mirror for what may fit only. */
async function listImages(current: string, names: NameSource): Promise<string[]> {
  const [address, ...others] = names.registries()
  const named = [address, ...others].find((host) => host !== undefined && current.startsWith(`${host}/`))
  const cached = named === undefined ? toShort(await names.cached()) : []
  const host = named ?? [address, ...others].find((one) => one?.startsWith(current))
  if (host === undefined) return cached
  return [...cached, ...(await names.pushed()).map((image) => `${host}/${image}`)]
}

function toRepositories(images: readonly string[]): string[] {
  return [...new Set(images.map((image) => image.replace(/@.*$|:[^/]*$/, '')))]
}

/** Adds the names of Docker Hub's images as users write them: `alpine:3.20`. */
function toShort(images: readonly string[]): string[] {
  return images.flatMap((image) => {
    const short = image.replace(/^docker\.io\/(?:library\/)?/, '')
    return short === image ? [image] : [short, image]
  })
}

const toCandidates = (values: readonly string[]): Candidate[] => values.map((value) => ({ value }))

function filter(candidates: readonly Candidate[], current: string): Completion {
  return {
    candidates: candidates.filter(({ value }) => value.startsWith(current) && plainWord.test(value)),
  }
}

function listCommands({ commands, topics }: CompletionSources): Candidate[] {
  const top = Object.values(commands).filter(({ id, hidden }) => !id.includes(':') && !hidden)
  return [
    ...top.map(({ id, summary }) => ({ value: id, description: summary })),
    ...Object.entries(topics).map(([name, { description }]) => ({ value: name, description })),
    { value: 'help', description: 'show help' },
    { value: 'version', description: 'show the version' },
  ].toSorted((a, b) => (a.value < b.value ? -1 : 1))
}

function listTopicCommands(topic: string, commands: Manifest['commands']): Candidate[] {
  const inside = Object.values(commands).filter(({ id, hidden }) => id.startsWith(`${topic}:`) && !hidden)
  return inside.map(({ id, summary }) => ({ value: id.slice(topic.length + 1), description: summary }))
}

/**
 * Splits a line of bash before the cursor into words, by the rules for quotes and backslashes. Expands and runs nothing. `isQuoted`:
 * the current word has an open quote.
 */
export function splitLine(line: string): { words: string[]; current: string; isQuoted: boolean } {
  const words: string[] = []
  let current = ''
  let quote: string | undefined
  let hasWord = false
  for (let at = 0; at < line.length; at += 1) {
    const character = line[at]!
    const isEscape = character === '\\' && quote !== "'"
    if (isEscape && at + 1 < line.length) {
      at += 1
      current += line[at]!
      hasWord = true
    } else if (quote !== undefined) {
      if (character === quote) quote = undefined
      else current += character
    } else if (character === '"' || character === "'") {
      quote = character
      hasWord = true
    } else if (/\s/.test(character)) {
      if (hasWord) words.push(current)
      current = ''
      hasWord = false
    } else {
      current += character
      hasWord = true
    }
  }
  // Skip assignments before the program: `MIRROR_HOME=/tmp/a mirror status`.
  while (/^\w+=/.test(words[0] ?? '')) words.shift()
  return { words, current, isQuoted: quote !== undefined }
}
