import { isRepositoryName } from '../oci/name.ts'
import { applyChange, emptyRepository, type GrowingRepository, type PushedChange } from './pushed-repository.ts'
import {
  damaged,
  readDigest,
  readJson,
  readLink,
  readList,
  readNumber,
  readObject,
  readTag,
  readText,
} from './read-fields.ts'

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
  /** The last line was cut off by a crash, before anybody was told that it stands. */
  readonly isTorn: boolean
  /** Damaged lines: what they said is lost. */
  readonly unreadable: number
}

/** The state a journal leads to; undefined when its first line is damaged. */
export function readJournal(text: string): ReadJournal | undefined {
  const [first, ...rest] = text.split('\n')
  const name = readJson(first!, readHead)
  if (name === undefined) return undefined
  const repository = emptyRepository(name)
  // What comes after the last line feed is empty, or torn.
  const isTorn = rest.pop() !== ''
  let unreadable = 0
  for (const line of rest) {
    const changes = readJson(line, (value) => readList(value).map(readChange))
    if (changes === undefined) unreadable += 1
    else for (const change of changes) applyChange(repository, change)
  }
  return { repository, lines: rest.length + 1, isTorn, unreadable }
}

function readHead(value: unknown): string {
  const head = readObject(value)
  const name = readText(head['name'])
  return head['format'] === format && isRepositoryName(name) ? name : damaged()
}

function readChange(json: unknown): PushedChange {
  const value = readObject(json)
  const op = value['op']
  switch (op) {
    case 'tag':
      return {
        op,
        tag: readTag(value['tag']),
        digest: readDigest(value['digest']),
        pushedAt: readNumber(value['pushedAt']),
      }
    case 'untag':
      return {
        op,
        tag: readTag(value['tag']),
        ...(value['pushedAt'] === undefined ? {} : { pushedAt: readNumber(value['pushedAt']) }),
      }
    case 'blob': {
      const { size, heldSince } = value
      return { op, digest: readDigest(value['digest']), size: readNumber(size), heldSince: readNumber(heldSince) }
    }
    case 'drop-blob':
    case 'drop-manifest':
      return { op, digest: readDigest(value['digest']) }
    case 'manifest':
      return {
        op,
        digest: readDigest(value['digest']),
        mediaType: readText(value['mediaType']),
        size: readNumber(value['size']),
        links: readList(value['links']).map(readLink),
        pushedAt: readNumber(value['pushedAt']),
        heldSince: readNumber(value['heldSince']),
        ...(value['subject'] === undefined ? {} : { subject: readDigest(value['subject']) }),
        ...(value['artifactType'] === undefined ? {} : { artifactType: readText(value['artifactType']) }),
        ...(value['annotations'] === undefined
          ? {}
          : { annotations: readObject(value['annotations']) as Record<string, string> }),
      }
    default:
      return damaged()
  }
}
