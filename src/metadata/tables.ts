import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import { parseIdentity } from '../oci/registry.ts'
import { Dictionary, DigestTable, noRow, selectDigest, selectDigestBytes } from './digest-table.ts'
import type { Blob, Manifest, PackedLinks } from './metadata.ts'
import { getDigestBytes, headBytes, manifestFlag, toBuffer, toFlag } from './operations.ts'

/** Holds the entries of all repositories by their digest. */
export class Tables {
  readonly identities = new Dictionary()
  readonly types = new Dictionary()
  readonly links = new LinkTable()
  readonly manifests = new DigestTable({
    mediaType: new Uint32Array(),
    identity: new Uint32Array(),
    size: new Float64Array(),
    updatedAt: new Float64Array(),
    pulls: new Uint32Array(),
    lastPulled: new Float64Array(),
    usedAt: new Float64Array(),
    /** Identifies the links in `links`. */
    firstLink: new Int32Array(),
    linkWeight: new Uint32Array(),
  })
  /** Holds the manifests that have a subject. */
  readonly referrers = new Map<number, Pick<Manifest, 'subject' | 'artifactType'>>()
  readonly blobs = new DigestTable({
    identity: new Uint32Array(),
    size: new Float64Array(),
    usedAt: new Float64Array(),
  })
  readonly #holders: DigestTable<{ count: Uint32Array }> | undefined

  constructor(countsHolders: boolean) {
    this.#holders = countsHolders ? new DigestTable({ count: new Uint32Array() }) : undefined
  }

  isHeld(digest: Digest): boolean {
    selectDigest(digest)
    return this.#holders?.find(0, () => true) !== noRow
  }

  countHolder(digest: Digest, change: 1 | -1): void {
    const table = this.#holders
    if (!table) return
    selectDigest(digest)
    const found = table.find(0, () => true)
    const row = found === noRow ? table.add(0) : found
    table.columns.count[row]! += change
    if (table.columns.count[row] === 0) table.remove(row)
  }

  readManifest(row: number): Manifest {
    const { columns } = this.manifests
    return {
      mediaType: this.types.get(columns.mediaType[row]!),
      size: columns.size[row]!,
      identity: parseIdentity(this.identities.get(columns.identity[row]!)),
      updatedAt: columns.updatedAt[row]!,
      pulls: columns.pulls[row]!,
      lastPulled: columns.lastPulled[row]!,
      usedAt: columns.usedAt[row]!,
      ...this.referrers.get(row),
    }
  }

  readBlob(row: number): Blob {
    const { size, identity, usedAt } = this.blobs.columns
    return { size: size[row]!, identity: parseIdentity(this.identities.get(identity[row]!)), usedAt: usedAt[row]! }
  }
}

/** Separates the kinds, so that a search for a manifest does not pass the links of all manifests that name the same layer. */
function toTableScope(scope: number, flags: number): number {
  return (flags & manifestFlag) === 0 ? scope : ~scope
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
    /** Holds the number of the media type, and in the lowest bit `manifestFlag`. */
    type: new Uint32Array(),
    size: new Float64Array(),
    manifest: new Uint32Array(),
    /** Holds the next link of the same manifest. */
    next: new Int32Array(),
  })

  reserve(links: number): void {
    this.#table.reserve(links)
  }

  /** Adds the links of a manifest. Returns the first one's row, which identifies them, or `noRow`. */
  add(manifest: number, scope: number, { types, bytes: packed }: PackedLinks): number {
    const bytes = toBuffer(packed)
    let [first, last] = [noRow, noRow]
    for (let at = 0; at < bytes.length;) {
      const flags = bytes[at]!
      const length = getDigestBytes(flags)
      selectDigestBytes(bytes, at + headBytes, length)
      const row = this.#table.add(toTableScope(scope, flags))
      const { columns } = this.#table
      const type = this.#types.use(types[bytes.readUInt16LE(at + 1)]!)
      columns.type[row] = (type << 1) | (flags & manifestFlag)
      columns.size[row] = bytes.readUIntLE(at + 3, 6)
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
      this.#types.release(columns.type[row]! >>> 1)
      this.#table.remove(row)
      row = next
    }
  }

  list(first: number): ManifestLink[] {
    const links: ManifestLink[] = []
    for (let row = first; row !== noRow; row = this.#table.columns.next[row]!)
      links.push(this.read(row, this.#table.digest(row)))
    return links
  }

  read(row: number, digest: Digest): ManifestLink {
    const { type, size } = this.#table.columns
    const mediaType = this.#types.get(type[row]! >>> 1)
    return { kind: (type[row]! & manifestFlag) === 0 ? 'blob' : 'manifest', digest, size: size[row]!, mediaType }
  }

  /** Returns the manifest that has a link. */
  getManifest(row: number): number {
    return this.#table.columns.manifest[row]!
  }

  /** Finds a link that the query selects: of several the last added one, or the last one before `after`. Returns its row, or `noRow`. */
  find({ digest, kind, scope, isFrom }: LinkQuery, after?: number): number {
    const { type, manifest } = this.#table.columns
    const flag = toFlag(kind)
    const test = (row: number) => (type[row]! & manifestFlag) === flag && isFrom(manifest[row]!)
    selectDigest(digest)
    return this.#table.find(toTableScope(scope, flag), test, after)
  }
}
