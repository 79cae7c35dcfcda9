import { stripVTControlCharacters, styleText } from 'node:util'
import { exitCode, MirrorError } from '../lib/errors.ts'

const styles = ['bold', 'dim', 'green', 'yellow', 'red'] as const

/** Holds the functions that put a text into a style; without colours they return it as it is. */
export type Colors = Readonly<Record<(typeof styles)[number], Colorizer>>

export type Colorizer = (text: string) => string

/** Reports whether a stream wants colours. https://no-color.org, and FORCE_COLOR as Node reads it. */
export function wantsColor(stream: { isTTY?: boolean }, env: Readonly<Record<string, string | undefined>>): boolean {
  if (env['NO_COLOR']) return false
  if (env['FORCE_COLOR'] !== undefined) return env['FORCE_COLOR'] !== '0' && env['FORCE_COLOR'] !== 'false'
  return stream.isTTY === true && env['TERM'] !== 'dumb'
}

export function createColors(inColor: boolean): Colors {
  // Decide here: without the option Node decides by this process's stdout, whichever stream the text is for.
  const options = { validateStream: false }
  const colorizers = styles.map((style): [string, Colorizer] => [
    style,
    (text) => (inColor && text !== '' ? styleText(style, text, options) : text),
  ])
  return Object.fromEntries(colorizers) as Colors
}

const barWidth = 24
/** Columns that the description of a choice needs beside its name. */
const minDescriptionWidth = 30

/** Creates a line that shows the progress of long work; it shows nothing unless the stream is a terminal. */
export function createProgressBar(stream: Pick<NodeJS.WriteStream, 'write' | 'isTTY'> & { columns?: number }) {
  return {
    update(done: number, total: number, label: string): void {
      if (!stream.isTTY) return
      const share = total === 0 ? 1 : Math.min(1, done / total)
      const filled = Math.round(share * barWidth)
      const line = `${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)} ${Math.floor(share * 100)} % ${label}`
      stream.write(`\r${line.slice(0, (getColumns(stream) ?? 80) - 1)}\x1b[K`)
    },
    /** Removes the line. */
    end(): void {
      if (stream.isTTY) stream.write('\r\x1b[K')
    },
  }
}

interface Choice<T> {
  readonly name: string
  readonly value: T
  /** Explains the name beside it. */
  readonly description?: string
  /** Holds the name to show once it is chosen; `name` when absent. */
  readonly short?: string
}

/** Creates the questions to a person at a terminal; undefined unless both streams are a terminal. */
export function createPrompt(
  input: { isTTY?: boolean },
  output: { isTTY?: boolean; columns?: number | undefined; rows?: number | undefined },
) {
  if (!input.isTTY || !output.isTTY) return undefined
  const columns = getColumns(output) ?? Infinity
  // Leave room for the mark before the question and for `(Y/n)` after it.
  const fit = (question: string) => wrapText(question, columns - 10, '', '  ').join('\n')

  return {
    /** `problem` returns what is wrong with an answer; undefined for a valid one. */
    ask: (message: string, options: { default: string; problem?: (answer: string) => string | undefined }) =>
      ask<string>({
        type: 'input',
        message: fit(message),
        default: options.default,
        validate: (text: string) => options.problem?.(text) ?? true,
      }),
    /** Asks for yes or no. `byDefault`: the answer of the Enter key. */
    confirm: (message: string, byDefault = true) =>
      ask<boolean>({ type: 'confirm', message: fit(message), default: byDefault }),
    /** Asks for one of several. */
    choose: <T>(message: string, choices: readonly Choice<T>[]) =>
      askToChoose<T>('select', message, renderChoices(choices, columns - 2, 2)),
    /** Asks for any of several; all of them are selected at first. */
    pick: <T>(message: string, choices: readonly Choice<T>[]) =>
      askToChoose<T[]>('checkbox', message, renderChoices(choices, columns - 3, 3, { checked: true })),
  }

  function askToChoose<T>(type: string, message: string, choices: readonly { readonly name: string }[]): Promise<T> {
    // Show all choices where the terminal is high enough for them, the question and the keys.
    const lines = choices.flatMap(({ name }) => name.split('\n')).length
    return ask<T>({
      type,
      message: fit(message),
      choices,
      pageSize: Math.min(lines, Math.max(5, (output.rows || 24) - 4)),
    })
  }
}

/**
 * Puts the descriptions of choices into a column beside their names, or below them in a narrow terminal. `indent`: the columns of the
 * mark before a choice. `more`: further properties of each.
 */
export function renderChoices<T>(
  choices: readonly Choice<T>[],
  width: number,
  indent: number,
  more: object = {},
): { name: string; short: string; value: T }[] {
  const column = Math.max(...choices.map(({ name }) => name.length)) + 3
  const isWide = width - column >= minDescriptionWidth
  return choices.map(({ name, value, description = '', short = name }) => {
    const start = ' '.repeat(indent + 2)
    const lines = isWide
      ? wrapText(description, width + indent, ' '.repeat(column + indent))
      : [...wrapText(name, width, '', start), ...wrapText(description, width + indent, start)]
    if (isWide) lines[0] = (name.padEnd(column) + (lines[0] ?? '').trimStart()).trimEnd()
    return { name: lines.join('\n'), short, value, ...more }
  })
}

async function ask<T>(question: object): Promise<T> {
  const { default: inquirer } = await import('inquirer')
  try {
    const { answer } = (await inquirer.prompt([{ name: 'answer', ...question } as never])) as { answer: T }
    return answer
  } catch (error) {
    // Translate Ctrl-C, which is this error instead of a signal while a question is open.
    if (!(error instanceof Error) || error.name !== 'ExitPromptError') throw error
    throw new MirrorError('Interrupted: nothing was done.', { exit: exitCode.interrupted, cause: error })
  }
}

/** Holds the input and output of a dialog. */
export interface Terminal {
  /** Writes a result, as it is, to stdout. */
  print(text: string): void
  /** Writes a result for a person to stdout; commands in it are named as the user calls them. */
  report(text: string): void
  printJson(value: unknown): void
  /** Writes a message for a person to stderr. */
  info(text: string): void
  /** Holds the colours of stdout. */
  readonly colors: Colors
  readonly stderrColors: Colors
  /** Counts the columns of stdout; undefined for no limit. */
  readonly columns: number | undefined
  /** Is undefined without a terminal. */
  readonly prompt: ReturnType<typeof createPrompt>
}

/**
 * Returns true to continue: by flag, or by the user's answer. `byDefault`: the answer of the Enter key, false for a removal. Throws
 * NotInteractiveError without both.
 */
export async function confirm(
  terminal: Pick<Terminal, 'prompt'>,
  { yes }: { readonly yes: boolean },
  question: string,
  byDefault = true,
): Promise<boolean> {
  if (yes) return true
  if (terminal.prompt) return terminal.prompt.confirm(question, byDefault)
  throw new NotInteractiveError()
}

/** Reports that consent is needed, and that there is no terminal to ask on. */
export class NotInteractiveError extends MirrorError {
  constructor() {
    super('Not a terminal: pass --yes to apply, or --dry-run to preview.', {
      exit: exitCode.usage,
      hints: ['--yes   (apply without asking)', '--dry-run   (only show what would be done)'],
    })
  }
}

const enterScreen = '\x1b[?1049h\x1b[?25l'
const leaveScreen = '\x1b[?25h\x1b[?1049l'
/** Lists the signals that end the program and leave its terminal open. After SIGHUP there is no terminal to restore. */
const endSignals = ['SIGTERM', 'SIGQUIT'] as const

/**
 * Opens the alternate screen of a terminal, for frames that replace each other. It closes at exit and on a signal that ends the
 * program, and is left while the program is suspended.
 */
export function openScreen(terminal: NodeJS.WriteStream) {
  let isOpen = true
  const close = () => {
    if (!isOpen) return
    isOpen = false
    process.off('exit', close).off('SIGTSTP', suspend).off('SIGCONT', resume)
    for (const signal of endSignals) process.off(signal, end)
    terminal.write(leaveScreen)
  }
  const end = (signal: NodeJS.Signals) => {
    close()
    process.kill(process.pid, signal)
  }
  const suspend = () => {
    terminal.write(leaveScreen)
    process.kill(process.pid, 'SIGSTOP')
  }
  const resume = () => void terminal.write(enterScreen)
  process.on('exit', close).on('SIGTSTP', suspend).on('SIGCONT', resume)
  for (const signal of endSignals) process.on(signal, end)
  terminal.write(enterScreen)
  return {
    show: (text: string) => void terminal.write(renderFrame(text, terminal.columns || 80, terminal.rows || 24)),
    /** Restores the content that the terminal had before. */
    close,
  }
}

/**
 * Renders the escape codes and text that replace the text on a terminal without clearing it first: nothing flickers, and nothing
 * goes to the scrollback. Only the top of a text that is higher than the terminal is shown.
 */
export function renderFrame(text: string, columns: number, rows: number): string {
  const shown: string[] = []
  let used = 0
  for (const line of text.split('\n')) {
    const { length } = stripVTControlCharacters(line)
    used += Math.max(1, Math.ceil(length / columns))
    if (used > rows) break
    // Erase nothing after a full row, because the cursor still stands on its last character.
    shown.push(length > 0 && length % columns === 0 ? line : `${line}\x1b[K`)
  }
  return `\x1b[H${shown.join('\r\n')}${used < rows ? '\r\n\x1b[J' : ''}`
}

/** Holds a word of a line, with its colour. */
export interface Token {
  readonly text: string
  readonly color?: Colorizer
}

/** Splits a text into tokens of one colour at its spaces. */
export function toTokens(text: string, color?: Colorizer): Token[] {
  return text.split(' ').flatMap((word) => (word === '' ? [] : [{ text: word, ...(color && { color }) }]))
}

/**
 * Returns the columns of a stream that is a terminal and knows them (one made by `script` may not); undefined for any other, which
 * takes lines of any length.
 */
export function getColumns(stream: { isTTY?: boolean; columns?: number | undefined }): number | undefined {
  return stream.isTTY === true && stream.columns !== undefined && stream.columns > 0 ? stream.columns : undefined
}

/** Wraps words into lines of at most `columns`; lines after the first are indented. Without a limit it is one line. */
export function wrapWords(words: readonly Token[], columns: number | undefined, indent: number): string {
  const width = columns === undefined ? Infinity : Math.max(columns, indent + 10)
  const lines: string[] = []
  let line = ''
  let used = 0
  const shown = words.filter(({ text }) => text !== '')
  for (const { text, color = keepText } of shown) {
    // Begin no new line when this one is not longer than the indent, because that gives no more room.
    if (used >= Math.max(1, indent) && used + 1 + text.trimEnd().length > width) {
      lines.push(line)
      line = ''
      used = 0
    }
    const isFirst = used === 0
    let rest = isFirst && lines.length > 0 ? text.trimStart() : text
    if (!isFirst) line += ' '
    else if (lines.length > 0) line = ' '.repeat(indent)
    used = isFirst ? line.length : used + 1
    // Cut a word that is longer than a line.
    while (used + rest.trimEnd().length > width) {
      const fits = rest.slice(0, width - used + 1)
      // Cut between two words where the text has spaces.
      const space = fits.trim().includes(' ') ? fits.lastIndexOf(' ') : -1
      const end = space > 0 ? space : width - used
      lines.push(line + color(rest.slice(0, end)))
      rest = rest.slice(space > 0 ? end + 1 : end)
      line = ' '.repeat(indent)
      used = indent
    }
    line += color(rest)
    used += rest.length
  }
  lines.push(line)
  return lines.map((text) => text.replaceAll('\u00a0', ' ').trimEnd()).join('\n')
}

/**
 * Wraps a text into lines of at most `width` characters. They begin with `indent`, those after the first with `hanging`. Words stay
 * whole, also one that is longer than a line; a number stays with its unit, and a no-break space joins two words.
 */
export function wrapText(text: string, width: number, indent = '', hanging = indent): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of splitWords(text)) {
    const start = lines.length === 0 ? indent : hanging
    if (line === '') line = start + word
    else if (line.length + 1 + word.length <= width) line += ` ${word}`
    else {
      lines.push(line)
      line = hanging + word
    }
  }
  if (line !== '') lines.push(line)
  return lines.map((full) => full.replaceAll('\u00a0', ' '))
}

/**
 * Wraps the lines of a text that are too long for a terminal. Continuation lines are indented by two more, or to the text after a
 * label (`FAIL  text`, `Next:  command`). A command stays on a line of its own, so that it can be copied: it begins a line, in lower
 * case or with a variable, or follows a colon. A note `   (in parentheses)` after it is prose. Without a limit the text stays as it is.
 */
export function fitText(text: string, columns: number | undefined): string {
  if (columns === undefined) return text
  // Programs of clients may end lines in other ways.
  return text
    .split(/\r?\n|[\r\u2028\u2029]/)
    .map((line) => fitLine(line, columns))
    .join('\n')
}

function fitLine(line: string, columns: number): string {
  const plain = stripVTControlCharacters(line).trimEnd()
  if (plain.length <= columns) return line
  const [, indent = '', label = '', rest = ''] = /^( *)(\d+\. |\S+ {2,}(?! |\())?(.*)$/.exec(plain)!
  const [, head = '', note = ''] = /^(.*?)(?: {3}(\(.*\)))?$/.exec(rest)!
  const start = commandStart.exec(head)?.index ?? head.length
  const [, command = '', tail = ''] = /^(.*?)((?:, (?:or|and|with|then) .*|(?<=[\w)])\.)?)$/.exec(head.slice(start))!
  const first = indent + label
  const hanging = ' '.repeat(label === '' ? indent.length + 2 : first.length)
  const isSentence = tail === '.'
  const prose = isSentence ? head : head.slice(0, start).trimEnd()
  // Keep a command inside a sentence that continues after it.
  const lines =
    isSentence || tail !== '' || command === ''
      ? wrapText(isSentence ? head : `${prose} ${command.replaceAll(' ', '\u00a0')}${tail}`, columns, first, hanging)
      : [...wrapText(prose, columns, first, hanging), `${prose === '' ? first : hanging}${command}`]
  const last = `${lines.at(-1)}   ${note}`
  if (last.length <= columns) lines[lines.length - 1] = last.trimEnd()
  else lines.push(...wrapText(note, columns, hanging))
  return recolor(lines.join('\n'), line)
}

/** Puts the colours of a line into the same text with other white space. */
function recolor(text: string, line: string): string {
  if (!line.includes('\x1b')) return text
  let at = 0
  const skipTo = (end: number) => {
    const from = at
    for (let seen = 0; seen < end; at++) if (/\S/.test(text[at]!)) seen++
    return text.slice(from, at)
  }
  let fitted = ''
  for (const part of line.split(colorCode)) {
    if (!part.startsWith('\x1b')) fitted += skipTo(part.replaceAll(/\s/g, '').length)
    else if (resetCode.test(part)) fitted += part
    else {
      const [space = ''] = /^\s*/.exec(text.slice(at))!
      at += space.length
      fitted += space + part
    }
  }
  return fitted + text.slice(at)
}

// oxlint-disable-next-line no-control-regex
const colorCode = /(\x1b\[[\d;]*m)/
// oxlint-disable-next-line no-control-regex
const resetCode = /^\x1b\[(?:0|2[2-9]|39|49)?m$/

// Skip `mirror: …`, `cache.maxSize: …` and `podman, user: …`, which begin a message, and `docker is …` and `--image and …`, which begin
// a sentence.
const commandStart =
  /^(?!\S+[:,] |mirror \(|--\S+ and |\S+ (?:is|are|was|were|has|have|had|pulls|pulled|did|does|contacted|configured|cannot|may) )(?=[a-z-]|\w+=)|(?<=: +)(?=(?:sudo|env|docker|mirror|df|npx|podman|minikube|kind|k3d|systemctl|chmod) (?!\(|is )|[A-Z_]+=\S)/

/** Splits a text into words, with a no-break space between a number and its unit. */
export function splitWords(text: string): string[] {
  const together = text.replaceAll(/(?<=\d) (?=(?:ms|s|min|h|d|(?:[KMGT]i?|k)?B|%)(?!\w))/g, '\u00a0')
  return together.split(' ').filter((part) => part !== '')
}

/** Cuts the middle out of a text that is too long. Both ends of an image's name matter, the last one more. */
export function shortenMiddle(text: string, maxLength: number): string {
  if (text.length <= maxLength) return text
  const end = Math.ceil(((maxLength - 1) * 2) / 3)
  return `${text.slice(0, Math.max(0, maxLength - 1 - end))}…${text.slice(text.length - end)}`
}

/** Shortens the digest of a name to its first 12 digits. */
export function shortenDigest(name: string): string {
  return name.replace(/@(sha\d+):([0-9a-f]{12})[0-9a-f]+/, '@$1:$2…')
}

const keepText: Colorizer = (text) => text
