import { STATUS_CODES } from 'node:http'
import { stripVTControlCharacters } from 'node:util'
import { isObject, JsonError, readJsonNow } from '../lib/json.ts'
import { redact } from '../lib/logger.ts'
import { decodeBytes, encodingOf } from './content-encoding.ts'
import type { Answer } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** An error body is read up to here, and for so long; both are far more than a sentence needs. */
const mostBytes = 16 * 1024
const mostMs = 1000
/** Characters of a reason. */
const longest = 300

/**
 * The registry's own words in an error answer, as one clean line: the first error message of its JSON body, a short plain text,
 * or an HTML page's title. Undefined when it says nothing. `secrets`: what was sent to it and must not come back out.
 * Reads the body's start and lets go of the rest.
 */
export async function readReason(answer: Answer, secrets: readonly string[] = []): Promise<string | undefined> {
  const reason = reasonIn(await readText(answer), secrets)
  return isStatusOnly(reason, answer.status) ? undefined : reason
}

/** The same for a body that was read already. */
export function reasonIn(text: string, secrets: readonly string[] = []): string | undefined {
  return clean(messageIn(text) ?? '', secrets)
}

/** A statement with the reason for it, as one sentence. */
export function withReason(statement: string, reason: string | undefined): string {
  return reason === undefined ? `${statement}.` : `${statement}: ${reason}`
}

/** The start of a short body as text; empty when it cannot be read. */
export async function readText(answer: Answer): Promise<string> {
  const late = setTimeout(() => answer.discard(), mostMs)
  const chunks: Uint8Array[] = []
  let length = 0
  try {
    for await (const chunk of answer.body) {
      chunks.push(chunk)
      length += chunk.length
      if (length >= mostBytes) break
    }
  } catch (error) {
    // The status alone says enough.
    if (!(error instanceof UpstreamError)) throw error
  } finally {
    clearTimeout(late)
  }
  const bytes = Buffer.concat(chunks)
  const encoding = encodingOf(answer)
  const plain = encoding === undefined ? bytes : await decodeOrNothing(bytes, encoding)
  return new TextDecoder().decode(plain.subarray(0, mostBytes))
}

async function decodeOrNothing(bytes: Uint8Array, encoding: string): Promise<Uint8Array> {
  try {
    return (await decodeBytes(bytes, encoding, mostBytes, '')) ?? new Uint8Array()
  } catch (error) {
    if (!(error instanceof UpstreamError)) throw error
    return new Uint8Array()
  }
}

/** Where registries and token servers put their sentence, the most telling member first. */
const members = ['message', 'error_description', 'details', 'detail', 'reason', 'error', 'title']

function messageIn(text: string): string | undefined {
  const trimmed = text.trim()
  if (/^[[{]/.test(trimmed)) return messageOf(parse(trimmed))
  if (/^<(?:!doctype|html|head|body|\?xml)/i.test(trimmed)) return titleOf(trimmed)
  // What is no text is no sentence.
  return trimmed.includes('\uFFFD') ? undefined : trimmed
}

function parse(text: string): unknown {
  try {
    return readJsonNow(Buffer.from(text))
  } catch (error) {
    if (error instanceof JsonError) return undefined
    throw error
  }
}

/** https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes, and what others send instead. */
function messageOf(value: unknown, depth = 0): string | undefined {
  if (typeof value === 'string') return value.trim() === '' ? undefined : value
  if (depth > 3) return undefined
  if (Array.isArray(value)) return first(value.slice(0, 20), (item) => messageOf(item, depth + 1))
  if (!isObject(value)) return undefined
  const listed = Array.isArray(value['errors']) ? messageOf(value['errors'], depth + 1) : undefined
  return listed ?? first(members, (name) => messageOf(value[name], depth + 1))
}

function first<T>(items: readonly T[], find: (item: T) => string | undefined): string | undefined {
  for (const item of items) {
    const found = find(item)
    if (found !== undefined) return found
  }
  return undefined
}

/** The title of a page, or the message of a storage's XML. */
function titleOf(markup: string): string | undefined {
  return /<(title|message)>([^<]{1,1000})<\/\1>/i.exec(markup)?.[2]
}

/** `404 page not found`, `Forbidden`: nothing that the status does not say. */
function isStatusOnly(reason: string | undefined, status: number): boolean {
  return reason !== undefined && (/^(?:error\s*)?[1-5]\d\d\b/i.test(reason) || sameWords(reason, STATUS_CODES[status]))
}

const sameWords = (a: string, b = '') => a.replaceAll(/\W/g, '').toLowerCase() === b.replaceAll(/\W/g, '').toLowerCase()

const tags = /<\/?[a-z!][^<>]*>/gi
/** Control and format characters, line separators, and halves of characters. */
const unprintable = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]+/gu
const startOfLine = new RegExp(`^.{${longest}}`, 'u')

function clean(text: string, secrets: readonly string[]): string | undefined {
  let line = stripVTControlCharacters(text.slice(0, 10 * longest))
    .replace(tags, ' ')
    .replace(unprintable, ' ')
  for (const secret of secrets.toSorted((a, b) => b.length - a.length)) {
    // A secret of a letter or two is in every sentence: then there is none that can be shown.
    if (secret.length < 4 && line.includes(secret)) return undefined
    for (const form of [secret, encodeURIComponent(secret), Buffer.from(secret).toString('base64')])
      line = line.replaceAll(form, '…')
  }
  line = redact(line).replace(/\s+/g, ' ').trim()
  if (!/[\p{L}\p{N}]/u.test(line)) return undefined
  const [start = line] = startOfLine.exec(line) ?? []
  return start.length < line.length ? `${start}…` : line
}
