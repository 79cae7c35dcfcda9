import { isRepositoryName } from '../oci/reference.ts'
import { artifactTypeKey } from '../oci/content.ts'
import type { PushedChange } from '../registry/repository.ts'
import { damaged, readDigest, readJson, readList, readNumber, readObject, readTag, readText } from './record-files.ts'

/** Format 1 kept each manifest's links and annotations as well; they are passed over. */
const format = 2

export interface JournalHead {
  readonly name: string
  /** `old`: its lines may hold what this version does not write. `newer`: they may mean what this version does not know. */
  readonly age: 'old' | 'present' | 'newer'
}

/** The first line of a repository's journal. */
export function headLine(name: string): string {
  return `${JSON.stringify({ format, name })}\n`
}

/** What the first line says; undefined when it is damaged. */
export function readHead(line: string): JournalHead | undefined {
  return readJson(line, (value) => {
    const head = readObject(value)
    const name = readText(head['name'])
    const written = readNumber(head['format'])
    if (!Number.isInteger(written) || written < 1 || !isRepositoryName(name)) return damaged()
    return { name, age: written < format ? 'old' : written > format ? 'newer' : 'present' }
  })
}

/** One line a commit: after a crash all of its changes stand, or none. */
export function changeLine(changes: readonly PushedChange[]): string {
  return `${JSON.stringify(changes)}\n`
}

/** The changes of a line; undefined when any of them is damaged. */
export function readChanges(line: string): PushedChange[] | undefined {
  return readJson(line, (value) => readList(value).map(readChange))
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
        pushedAt: readNumber(value['pushedAt']),
        heldSince: readNumber(value['heldSince']),
        ...(value['subject'] === undefined ? {} : { subject: readDigest(value['subject']) }),
        ...(value['artifactType'] === undefined
          ? {}
          : { artifactType: artifactTypeKey(readText(value['artifactType'])) }),
      }
    default:
      return damaged()
  }
}
