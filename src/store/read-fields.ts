import type { ManifestLink } from '../oci/content.ts'
import { parseDigest, type Digest } from '../oci/digest.ts'
import { isTag } from '../oci/reference.ts'

/** Reads what is written down of a repository: each gives the value if it is what it should be, or throws a SyntaxError. */
export function readObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : damaged()
}

export function readList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : damaged()
}

export function readText(value: unknown): string {
  return typeof value === 'string' ? value : damaged()
}

export function readNumber(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : damaged()
}

export function readTag(value: unknown): string {
  const tag = readText(value)
  return isTag(tag) ? tag : damaged()
}

export function readDigest(value: unknown): Digest {
  return parseDigest(readText(value)) ?? damaged()
}

export function readLink(json: unknown): ManifestLink {
  const { kind, mediaType, digest, size } = readObject(json)
  if (kind !== 'manifest' && kind !== 'blob') return damaged()
  return { kind, mediaType: readText(mediaType), digest: readDigest(digest), size: readNumber(size) }
}

/** Parses a JSON text and reads it; undefined when it, or a part of it, is damaged. */
export function readJson<T>(text: string, read: (value: unknown) => T): T | undefined {
  try {
    return read(JSON.parse(text))
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}

export function damaged(): never {
  throw new SyntaxError('not what stands in a record')
}
