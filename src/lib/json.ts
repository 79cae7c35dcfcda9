import { isUtf8 } from 'node:buffer'
import { deferred } from './async.ts'

/** The object that a JSON text stands for; undefined for any other text. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Levels of objects and lists. Manifests need about six; every version of Node and every client reads this many. */
export const maxJsonDepth = 100
/** Values in all, members and entries. A manifest of 4 MiB has room for about 150,000 of them in descriptors. */
const maxJsonValues = 200_000
/** Members of one object. A larger one makes its table grow in steps that keep everybody waiting. */
export const maxJsonMembers = 50_000
/** Characters of a number. Longer ones have no use, and cost more to read than their bytes say. */
const maxNumberLength = 1000
/** Bytes that are read at once, without a turn. */
const maxUnsplitBytes = 64 * 1024
/** Values between two looks at the clock. */
const stepValues = 512
/** How long a step of a large text may keep everybody else waiting, ms. */
const stepMs = 5

type JsonProblem = 'not-json' | 'too-deep' | 'too-many' | 'repeated-key'

const messages: Record<JsonProblem, string> = {
  'not-json': 'It is not valid JSON.',
  'too-deep': `It is nested deeper than ${maxJsonDepth} levels.`,
  'too-many': `It has more than ${maxJsonValues} values, or ${maxJsonMembers} in one object.`,
  'repeated-key': 'An object has the same key twice.',
}

/** A text that is not JSON, or more of it than is read. */
export class JsonError extends Error {
  override name = 'JsonError'
  readonly problem: JsonProblem

  constructor(problem: JsonProblem) {
    super(messages[problem])
    this.problem = problem
  }
}

interface JsonOptions {
  /**
   * Refuses what two readers could take for two things: a key twice in one object (some take the first, some the last), and a
   * byte order mark. https://www.rfc-editor.org/rfc/rfc8259#section-4
   */
  readonly unambiguous?: boolean
}

/**
 * The value of a JSON text that comes from outside, as JSON.parse would give it, within bounds that hold before anything is built.
 * Large texts are read one at a time and in steps, between which everything else goes on. Throws a JsonError.
 */
export async function readJson(bytes: Uint8Array, options: JsonOptions = {}): Promise<unknown> {
  if (bytes.length <= maxUnsplitBytes) return readJsonNow(bytes, options)
  const previous = lastTurn
  const ended = deferred()
  lastTurn = ended.promise
  await previous
  try {
    const steps = parseInSteps(bytes, options)
    for (;;) {
      await waitForNextRound()
      const until = performance.now() + stepMs
      do {
        const { done, value } = steps.next()
        if (done) return value
      } while (performance.now() < until)
    }
  } finally {
    ended.resolve()
  }
}

/** The object that a JSON text stands for, as `readJson` reads it; undefined for any other text. */
export async function readJsonObject(
  bytes: Uint8Array,
  options?: JsonOptions,
): Promise<Record<string, unknown> | undefined> {
  try {
    const value = await readJson(bytes, options)
    return isObject(value) ? value : undefined
  } catch (error) {
    if (error instanceof JsonError) return undefined
    throw error
  }
}

/** The same as `readJson` at once, for a text of a few kilobytes. */
export function readJsonNow(bytes: Uint8Array, options: JsonOptions = {}): unknown {
  const steps = parseInSteps(bytes, options)
  for (;;) {
    const { done, value } = steps.next()
    if (done) return value
  }
}

/** The memory of what is read, and the time of the event loop, are the whole process's: large texts take turns. */
let lastTurn: Promise<void> = Promise.resolve()

const waitForNextRound = () => new Promise<void>((resolve) => void setImmediate(resolve))

type Container = unknown[] | Record<string, unknown>

const [quote, backslash, comma, colon] = [0x22, 0x5c, 0x2c, 0x3a]
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d]
const numberPattern = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/

/** Yields after so many values; recursion is not used, so that no nesting can exhaust the stack. */
function* parseInSteps(source: Uint8Array, { unambiguous = false }: JsonOptions): Generator<undefined, unknown> {
  if (!isUtf8(source)) throw new JsonError('not-json')
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.byteLength)
  const text = new TextReader(bytes)
  if (!unambiguous && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) text.at = 3
  const open: Container[] = []
  /** Members so far, of each object that is open. */
  const members: number[] = []
  let parent: Container | undefined
  let key = ''
  let values = 0

  text.skipSpace()
  for (;;) {
    values += 1
    if (values > maxJsonValues) throw new JsonError('too-many')
    if (values % stepValues === 0) yield
    const byte = bytes[text.at]
    const opened: Container | undefined = byte === openObject ? {} : byte === openList ? [] : undefined
    const value = opened ?? text.scalar()
    if (!parent) {
      if (!opened) {
        text.expectEnd()
        return value
      }
    } else if (Array.isArray(parent)) parent.push(value)
    else {
      if (++members[members.length - 1]! > maxJsonMembers) throw new JsonError('too-many')
      setMember(parent, key, value, unambiguous)
    }

    if (opened) {
      if (open.length === maxJsonDepth) throw new JsonError('too-deep')
      open.push(opened)
      members.push(0)
      parent = opened
      text.at += 1
      text.skipSpace()
      if (bytes[text.at] !== (Array.isArray(opened) ? closeList : closeObject)) {
        if (!Array.isArray(opened)) key = text.key()
        continue
      }
    }
    // A value has ended: what closes, or comes next?
    for (;;) {
      text.skipSpace()
      const isList = Array.isArray(parent)
      const next = bytes[text.at]
      if (next === comma) {
        text.at += 1
        text.skipSpace()
        if (!isList) key = text.key()
        break
      }
      if (next !== (isList ? closeList : closeObject)) throw new JsonError('not-json')
      text.at += 1
      const closed = open.pop()
      members.pop()
      parent = open.at(-1)
      if (!parent) {
        text.expectEnd()
        return closed
      }
    }
  }
}

function setMember(object: Record<string, unknown>, key: string, value: unknown, unambiguous: boolean): void {
  if (unambiguous && Object.hasOwn(object, key)) throw new JsonError('repeated-key')
  // As an assignment this one would change what the object inherits.
  if (key === '__proto__')
    Object.defineProperty(object, key, { value, writable: true, enumerable: true, configurable: true })
  else object[key] = value
}

class TextReader {
  at = 0
  readonly #bytes: Buffer

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  skipSpace(): void {
    const bytes = this.#bytes
    let at = this.at
    for (let byte = bytes[at]; byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09; byte = bytes[at]) at++
    this.at = at
  }

  expectEnd(): void {
    this.skipSpace()
    if (this.at !== this.#bytes.length) throw new JsonError('not-json')
  }

  /** A key and its colon, up to the start of its value. */
  key(): string {
    if (this.#bytes[this.at] !== quote) throw new JsonError('not-json')
    const key = this.#string()
    this.skipSpace()
    if (this.#bytes[this.at] !== colon) throw new JsonError('not-json')
    this.at += 1
    this.skipSpace()
    return key
  }

  /** A string, a number, true, false or null. */
  scalar(): unknown {
    switch (this.#bytes[this.at]) {
      case quote:
        return this.#string()
      case 0x74:
        return this.#literal('true', true)
      case 0x66:
        return this.#literal('false', false)
      case 0x6e:
        return this.#literal('null', null)
      default:
        return this.#number()
    }
  }

  #literal<T>(word: string, value: T): T {
    if (this.#bytes.toString('latin1', this.at, this.at + word.length) !== word) throw new JsonError('not-json')
    this.at += word.length
    return value
  }

  #number(): number {
    const bytes = this.#bytes
    let end = this.at
    for (let byte = bytes[end]; isNumeric(byte); byte = bytes[end]) end++
    if (end - this.at > maxNumberLength) throw new JsonError('not-json')
    const digits = bytes.toString('latin1', this.at, end)
    if (!numberPattern.test(digits)) throw new JsonError('not-json')
    this.at = end
    return Number(digits)
  }

  /** A copy: a part of a large text would keep all of that in memory. */
  #string(): string {
    const bytes = this.#bytes
    const { length } = bytes
    const start = this.at + 1
    let at = start
    let isEscaped = false
    let all = 0
    for (; at < length; at++) {
      const byte = bytes[at]!
      if (byte === quote) break
      if (byte < 0x20) throw new JsonError('not-json')
      if (byte === backslash) {
        isEscaped = true
        at += 1
      }
      all |= byte
    }
    if (at >= length) throw new JsonError('not-json')
    this.at = at + 1
    if (isEscaped) return unescape(bytes.toString('utf8', start - 1, at + 1))
    return all < 0x80 ? bytes.toString('latin1', start, at) : bytes.toString('utf8', start, at)
  }
}

function isNumeric(byte: number | undefined): boolean {
  if (byte === undefined) return false
  return (
    (byte >= 0x30 && byte <= 0x39) || byte === 0x2d || byte === 0x2b || byte === 0x2e || byte === 0x65 || byte === 0x45
  )
}

function unescape(quoted: string): string {
  try {
    return JSON.parse(quoted) as string
  } catch {
    throw new JsonError('not-json')
  }
}
