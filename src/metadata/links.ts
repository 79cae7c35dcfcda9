import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import { Dictionary, DigestTable, formatDigest, noRow, selectDigest, selectDigestBytes } from './digest-table.ts'

/**
 * Holds the links of a manifest in 41 bytes each (73 for sha512): flags, the number of the media type in `types`, the size in 48 bits, and the
 * digest.
 */
export interface PackedLinks {
  readonly types: readonly string[]
  readonly bytes: Buffer
}

const manifestFlag = 1
const sha512Flag = 2
const flagBits = 2
const flagMask = 3
/** Counts the bytes of a link before its digest. */
const headBytes = 9
const maxSize = 2 ** 48 - 1

/** Packs links. Leaves out those with an impossible size, which no blob can have. */
export function packLinks(links: readonly ManifestLink[]): PackedLinks {
  const types = new Map<string, number>()
  const bytes = Buffer.allocUnsafeSlow(links.length * (headBytes + 64))
  let at = 0
  for (const { kind, digest, size, mediaType } of links) {
    if (size > maxSize) continue
    const length = bytes.write(digest.slice(digest.indexOf(':') + 1), at + headBytes, 'hex')
    const flags = toFlag(kind) | (length === 64 ? sha512Flag : 0)
    writeHead(bytes, at, flags, numberOf(types, mediaType), size)
    at += headBytes + length
  }
  return { types: [...types.keys()], bytes: bytes.subarray(0, at) }
}

function writeHead(bytes: Buffer, at: number, flags: number, type: number, size: number): void {
  bytes[at] = flags
  bytes.writeUInt16LE(type, at + 1)
  bytes.writeUIntLE(size, at + 3, 6)
}

function numberOf<Key>(numbers: Map<Key, number>, key: Key): number {
  const number = numbers.get(key) ?? numbers.size
  numbers.set(key, number)
  return number
}

function toFlag(kind: ManifestLink['kind']): number {
  return kind === 'manifest' ? manifestFlag : 0
}

/** Separates the kinds, so that a search for a manifest does not pass the links of all manifests that name the same layer. */
function toTableScope(scope: number, flags: number): number {
  return (flags & manifestFlag) === 0 ? scope : ~scope
}

function getDigestBytes(flags: number): number {
  return (flags & sha512Flag) === 0 ? 32 : 64
}

/** Yields the links of a manifest. */
export function* unpackLinks({ types, bytes }: PackedLinks): Generator<ManifestLink, void> {
  for (let at = 0; at < bytes.length;) {
    const flags = bytes[at]!
    const length = getDigestBytes(flags)
    yield {
      kind: (flags & manifestFlag) === 0 ? 'blob' : 'manifest',
      digest: formatDigest(bytes, at + headBytes, length),
      size: bytes.readUIntLE(at + 3, 6),
      mediaType: types[bytes.readUInt16LE(at + 1)] ?? throwDamaged(),
    }
    at += headBytes + length
  }
}

/** Throws a SyntaxError, which marks a record as damaged. */
export function throwDamaged(): never {
  throw new SyntaxError('a record has an unexpected value')
}

/** Selects among the manifests that name a digest. */
interface LinkQuery {
  readonly digest: Digest
  readonly kind: ManifestLink['kind']
  /** Numbers what the manifests have in common: repository and identity. */
  readonly scope: number
  /** Reports whether a manifest (its row) really has the repository and identity of the scope. */
  readonly isFrom: (manifest: number) => boolean
}

/** Holds the links of all manifests in 70 bytes each, and finds the manifests that name a digest. A manifest is the number of its row. */
export class LinkTable {
  readonly #types = new Dictionary()
  readonly #table = new DigestTable({
    /** Holds the number of the media type, and the flags in the lowest bits. */
    type: new Uint32Array(),
    sizeLow: new Uint32Array(),
    sizeHigh: new Uint16Array(),
    manifest: new Uint32Array(),
    /** Holds the next link of the same manifest. */
    next: new Int32Array(),
  })

  /** Adds the links of a manifest. Returns the first one's row, which identifies them, or `noRow`. */
  add(manifest: number, scope: number, { types, bytes }: PackedLinks): number {
    let [first, last] = [noRow, noRow]
    for (let at = 0; at < bytes.length;) {
      const flags = bytes[at]!
      const length = getDigestBytes(flags)
      selectDigestBytes(bytes, at + headBytes, length)
      const row = this.#table.add(toTableScope(scope, flags))
      const { columns } = this.#table
      columns.type[row] = (this.#types.use(types[bytes.readUInt16LE(at + 1)]!) << flagBits) | flags
      columns.sizeLow[row] = bytes.readUInt32LE(at + 3)
      columns.sizeHigh[row] = bytes.readUInt16LE(at + 7)
      columns.manifest[row] = manifest
      columns.next[row] = noRow
      if (last === noRow) first = row
      else columns.next[last] = row
      last = row
      at += headBytes + length
    }
    return first
  }

  remove(first: number): void {
    for (let row = first; row !== noRow;) {
      const { columns } = this.#table
      const next = columns.next[row]!
      this.#types.release(columns.type[row]! >>> flagBits)
      this.#table.remove(row)
      row = next
    }
  }

  pack(first: number): PackedLinks {
    const { columns } = this.#table
    const rows: number[] = []
    for (let row = first; row !== noRow; row = columns.next[row]!) rows.push(row)
    const types = new Map<number, number>()
    const bytes = Buffer.allocUnsafeSlow(rows.length * (headBytes + 64))
    let at = 0
    for (const row of rows) {
      const type = columns.type[row]!
      writeHead(bytes, at, type & flagMask, numberOf(types, type >>> flagBits), this.#getSize(row))
      at += headBytes + this.#table.copyDigest(row, bytes, at + headBytes)
    }
    return { types: Array.from(types.keys(), (type) => this.#types.get(type)), bytes: bytes.subarray(0, at) }
  }

  /** Finds the link of a manifest that the query selects: the one added last. */
  find(query: LinkQuery): ManifestLink | undefined {
    const { columns } = this.#table
    selectDigest(query.digest)
    const row = this.#table.find(toTableScope(query.scope, toFlag(query.kind)), this.#createTest(query))
    if (row === noRow) return undefined
    const mediaType = this.#types.get(columns.type[row]! >>> flagBits)
    return { kind: query.kind, digest: query.digest, size: this.#getSize(row), mediaType }
  }

  /** Returns the manifests that the query selects, at most `limit`. */
  findManifests(query: LinkQuery, limit: number): number[] {
    const manifests: number[] = []
    const test = this.#createTest(query)
    selectDigest(query.digest)
    let row = this.#table.find(toTableScope(query.scope, toFlag(query.kind)), test)
    for (; row !== noRow && manifests.length < limit; row = this.#table.findNext(row, test))
      manifests.push(this.#table.columns.manifest[row]!)
    return manifests
  }

  #getSize(row: number): number {
    const { sizeLow, sizeHigh } = this.#table.columns
    return sizeHigh[row]! * 2 ** 32 + sizeLow[row]!
  }

  #createTest({ kind, isFrom }: LinkQuery): (row: number) => boolean {
    const flag = kind === 'manifest' ? manifestFlag : 0
    const { type, manifest } = this.#table.columns
    return (row) => (type[row]! & manifestFlag) === flag && isFrom(manifest[row]!)
  }
}
