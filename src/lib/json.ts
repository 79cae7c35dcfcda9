import { isUtf8 } from 'node:buffer'
import { createDeferred } from './async.ts'
import { getErrno } from './errors.ts'
import { readSmallFile } from './fs.ts'

/** Parses a JSON text that holds an object; undefined for any other text. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return isObject(value) ? value : undefined
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

/** Reads a file that holds a JSON object; undefined for one that is missing, damaged or cannot be read (decision D7). */
export async function readJsonFile(path: string, limit?: number): Promise<Record<string, unknown> | undefined> {
  let text: string
  try {
    text = await readSmallFile(path, limit)
  } catch (error) {
    if (getErrno(error) !== undefined) return undefined
    throw error
  }
  return parseObject(text)
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Limits the nesting of objects and lists. Manifests need about six levels; every version of Node and every client reads 100. */
export const maxJsonDepth = 100
/** Limits the values in one text, members and entries. A manifest of 4 MiB has room for about 150,000 of them in descriptors. */
const maxJsonValues = 200_000
/** Limits the members of one object. Beyond that, growing the object's table blocks the event loop. */
export const maxJsonMembers = 50_000
/** Limits the characters of a number. Longer numbers have no use, and parsing takes more than linear time. */
const maxNumberLength = 1000
/** Limits the text that is parsed in one step, bytes. */
const maxUnsplitBytes = 64 * 1024
/** Sets the values between two checks of the clock. */
const stepValues = 512
/** Limits the time that a step of a large text blocks the event loop, ms. */
const stepMs = 5

type JsonProblem = 'not-json' | 'too-deep' | 'too-many' | 'repeated-key'

const messages: Record<JsonProblem, string> = {
  'not-json': 'It is not valid JSON.',
  'too-deep': `It is nested deeper than ${maxJsonDepth} levels.`,
  'too-many': `It has more than ${maxJsonValues} values, or ${maxJsonMembers} in one object.`,
  'repeated-key': 'An object has the same key twice.',
}

/** Reports a text that is not JSON, or that exceeds a limit. */
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
   * Refuses texts that two parsers could read differently: a repeated key in one object (some parsers take the first, some the
   * last), and a byte order mark. https://www.rfc-editor.org/rfc/rfc8259#section-4
   */
  readonly unambiguous?: boolean
}

/**
 * Parses untrusted JSON into what JSON.parse would return, within limits that are checked before a value is built. Parses large texts
 * one at a time and in steps, and yields to the event loop between them. Throws a JsonError.
 */
export async function readJson(bytes: Uint8Array, options: JsonOptions = {}): Promise<unknown> {
  if (bytes.length <= maxUnsplitBytes) return readJsonNow(bytes, options)
  const previous = lastTurn
  const ended = createDeferred()
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

/** Parses untrusted JSON that holds an object, as `parseRecordJson` does; undefined for any other text. */
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

/** Parses like `parseRecordJson`, but synchronously, for a text of a few kilobytes. */
export function readJsonNow(bytes: Uint8Array, options: JsonOptions = {}): unknown {
  const steps = parseInSteps(bytes, options)
  for (;;) {
    const { done, value } = steps.next()
    if (done) return value
  }
}

/** Resolves when the large text before has been parsed: large texts queue, because all share the memory and the event loop. */
let lastTurn: Promise<void> = Promise.resolve()

const waitForNextRound = () => new Promise<void>((resolve) => void setImmediate(resolve))

type Container = unknown[] | Record<string, unknown>

const [quote, backslash, comma, colon] = [0x22, 0x5c, 0x2c, 0x3a]
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d]
const numberPattern = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/

/** Parses a text and yields every 512 values. Uses no recursion, so that nesting cannot exhaust the stack. */
function* parseInSteps(source: Uint8Array, { unambiguous = false }: JsonOptions): Generator<undefined, unknown> {
  if (!isUtf8(source)) throw new JsonError('not-json')
  const bytes = Buffer.from(source.buffer, source.byteOffset, source.byteLength)
  const text = new TextReader(bytes)
  if (!unambiguous && bytes[0] === 0xef && bytes[1] === 0xbb && bytes[2] === 0xbf) text.at = 3
  const open: Container[] = []
  // Counts the members of each open object.
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
    // Close the containers that end here, or continue with the next entry.
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
  // Define the member, because an assignment would replace the object's prototype.
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

  /** Reads a key and its colon, up to the start of its value. */
  key(): string {
    if (this.#bytes[this.at] !== quote) throw new JsonError('not-json')
    const key = this.#string()
    this.skipSpace()
    if (this.#bytes[this.at] !== colon) throw new JsonError('not-json')
    this.at += 1
    this.skipSpace()
    return key
  }

  /** Reads a string, a number, true, false or null. */
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

  /** Reads a string as a copy, because a slice would keep the whole text in memory. */
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
