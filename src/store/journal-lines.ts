import type { ManifestLink } from '../oci/descriptor.ts'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { isRepositoryName, isTag } from '../oci/name.ts'
import { applyChange, emptyRepository, type GrowingRepository, type PushedChange } from './pushed-repository.ts'

const format = 1

/** The first line of a repository's journal. */
export function headLine(name: string): string {
  return `${JSON.stringify({ format, name })}\n`
}

/** One line a commit: after a crash all of its changes stand, or none. */
export function changeLine(changes: readonly PushedChange[]): string {
  return `${JSON.stringify(changes)}\n`
}

export interface ReadJournal {
  readonly repository: GrowingRepository
  readonly lines: number
  /** Lines that say nothing: the last, torn by a crash before anybody was told that it stands, or damaged ones. */
  readonly unreadable: number
}

/** The state a journal leads to; undefined when its first line is damaged. */
export function readJournal(text: string): ReadJournal | undefined {
  const [first, ...rest] = text.split('\n')
  const name = readLine(first!, readHead)
  if (name === undefined) return undefined
  const repository = emptyRepository(name)
  // What comes after the last line feed is empty, or torn.
  const torn = rest.pop()
  let unreadable = torn === '' ? 0 : 1
  for (const line of rest) {
    const changes = readLine(line, (value) => list(value).map(readChange))
    if (changes === undefined) unreadable += 1
    else for (const change of changes) applyChange(repository, change)
  }
  return { repository, lines: rest.length + 1, unreadable }
}

function readLine<T>(line: string, read: (value: unknown) => T): T | undefined {
  try {
    return read(JSON.parse(line))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

function readHead(value: unknown): string {
  const head = object(value)
  const name = text(head['name'])
  return head['format'] === format && isRepositoryName(name) ? name : damaged()
}

function readChange(json: unknown): PushedChange {
  const value = object(json)
  const op = value['op']
  switch (op) {
    case 'tag':
      return { op, tag: tag(value['tag']), digest: digest(value['digest']), pushedAt: number(value['pushedAt']) }
    case 'untag':
      return { op, tag: tag(value['tag']) }
    case 'blob': {
      const { size, heldSince } = value
      return { op, digest: digest(value['digest']), size: number(size), heldSince: number(heldSince) }
    }
    case 'drop-blob':
    case 'drop-manifest':
      return { op, digest: digest(value['digest']) }
    case 'manifest':
      return {
        op,
        digest: digest(value['digest']),
        mediaType: text(value['mediaType']),
        size: number(value['size']),
        links: list(value['links']).map(readLink),
        pushedAt: number(value['pushedAt']),
        heldSince: number(value['heldSince']),
        ...(value['subject'] === undefined ? {} : { subject: digest(value['subject']) }),
        ...(value['artifactType'] === undefined ? {} : { artifactType: text(value['artifactType']) }),
        ...(value['annotations'] === undefined
          ? {}
          : { annotations: object(value['annotations']) as Record<string, string> }),
      }
    default:
      return damaged()
  }
}

function readLink(json: unknown): ManifestLink {
  const value = object(json)
  const kind = value['kind']
  if (kind !== 'manifest' && kind !== 'blob') return damaged()
  const { mediaType, size } = value
  return { kind, mediaType: text(mediaType), digest: digest(value['digest']), size: number(size) }
}

function object(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : damaged()
}

function list(value: unknown): unknown[] {
  return Array.isArray(value) ? value : damaged()
}

function text(value: unknown): string {
  return typeof value === 'string' ? value : damaged()
}

function tag(value: unknown): string {
  return isTag(text(value)) ? text(value) : damaged()
}

function number(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : damaged()
}

function digest(value: unknown): Digest {
  return parseDigest(text(value)) ?? damaged()
}

function damaged(): never {
  throw new SyntaxError('not a line of a repository journal')
}
