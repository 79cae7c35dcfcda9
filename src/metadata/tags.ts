import { parseIdentity } from '../oci/registry.ts'
import { type Dictionary, DigestTable, PackedMap, selectDigest } from './digest-table.ts'
import type { Tag } from './operations.ts'

type TagTable = ReturnType<typeof createTagTable>

/** Creates the table for the tags of all repositories. */
export function createTagTable() {
  const columns = {
    identity: new Uint32Array(),
    updatedAt: new Float64Array(),
    pulls: new Uint32Array(),
    lastPulled: new Float64Array(),
  }
  return new DigestTable(columns)
}

/** Holds the tags of one repository, packed. The values are copies. */
export class TagMap extends PackedMap<string, Tag> {
  readonly #rows = new Map<string, number>()
  readonly #table: TagTable
  readonly #identities: Dictionary

  constructor(table: TagTable, identities: Dictionary) {
    super()
    this.#table = table
    this.#identities = identities
  }

  get size(): number {
    return this.#rows.size
  }

  set(name: string, { digest, identity, updatedAt, pulls, lastPulled }: Tag): void {
    this.#release(name)
    selectDigest(digest)
    const row = this.#table.add(0)
    const { columns } = this.#table
    columns.identity[row] = this.#identities.use(identity)
    columns.updatedAt[row] = updatedAt
    columns.pulls[row] = pulls
    columns.lastPulled[row] = lastPulled
    this.#rows.set(name, row)
  }

  delete(name: string): void {
    this.#release(name)
    this.#rows.delete(name)
  }

  has(name: string): boolean {
    return this.#rows.has(name)
  }

  get(name: string): Tag | undefined {
    const row = this.#rows.get(name)
    return row === undefined ? undefined : this.#read(row)
  }

  *entries(): MapIterator<[string, Tag]> {
    for (const [name, row] of this.#rows) yield [name, this.#read(row)]
  }

  keys(): MapIterator<string> {
    return this.#rows.keys()
  }

  #release(name: string): void {
    const row = this.#rows.get(name)
    if (row === undefined) return
    this.#identities.release(this.#table.columns.identity[row]!)
    this.#table.remove(row)
  }

  #read(row: number): Tag {
    const { columns } = this.#table
    return {
      digest: this.#table.digest(row),
      identity: parseIdentity(this.#identities.get(columns.identity[row]!)),
      updatedAt: columns.updatedAt[row]!,
      pulls: columns.pulls[row]!,
      lastPulled: columns.lastPulled[row]!,
    }
  }
}
