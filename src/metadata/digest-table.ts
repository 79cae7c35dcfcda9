import { randomInt } from 'node:crypto'
import type { Digest } from '../oci/reference.ts'

/** Holds one value of every row; grows with its table. */
type Column = Float64Array | Uint32Array | Int32Array

/** Marks the absence of a row. */
export const noRow = -1

const wordsPerDigest = 8
const firstCapacity = 256
const multiplier = 0x9e3779b1
/** Are secret, because upstreams choose the digests in their manifests, and may try to fill one bucket with them. The second is odd. */
const [seed, secret] = [randomInt(2 ** 32), randomInt(2 ** 31) * 2 + 1]

/** Holds the bytes of the selected digest, see `selectDigest`: 32 (sha256) or 64 (sha512). */
const selected = Buffer.alloc(64)
const selectedWords = new Uint32Array(selected.buffer, selected.byteOffset, selected.length / 4)
const selectedStart = selectedWords.subarray(0, wordsPerDigest)
let selectedLength = 0

/** Selects the digest of the next calls of `find` and `add`, of any table. */
export function selectDigest(digest: Digest): void {
  selectedLength = selected.write(digest.slice(digest.indexOf(':') + 1), 0, 'hex')
}

/** Selects the digest whose 32 or 64 bytes are at this position. */
export function selectDigestBytes(bytes: Buffer, at: number, length: number): void {
  // For so few bytes, a loop is faster than `copy`.
  for (let index = 0; index < length; index++) selected[index] = bytes[at + index]!
  selectedLength = length
}

/**
 * Stores numbered rows with a digest each in typed arrays, and finds them by digest: about 50 bytes for each row and its columns, where
 * a Map of objects takes several hundred. A row keeps its number until it is removed; then another row may get it.
 */
export class DigestTable<Columns extends Record<string, Column>> {
  /** Holds the columns. The arrays are replaced when the table grows, so read them through the table. */
  readonly columns: Columns
  #digests = new Uint32Array()
  /** Shows the bytes of `#digests`. */
  #bytes = Buffer.from(this.#digests.buffer)
  /** Holds the second half of sha512 digests. */
  readonly #longDigests = new Map<number, Buffer>()
  #buckets = new Int32Array()
  #hashes = new Uint32Array()
  /** Holds the next row of the same bucket, or the next free row. */
  #next = new Int32Array()
  /** Holds the previous row of the same bucket. */
  #previous = new Int32Array()
  #firstFree = noRow
  /** Counts the rows that were ever in use. */
  #used = 0

  constructor(columns: Columns) {
    this.columns = columns
    this.#grow(firstCapacity)
  }

  /** Makes room for rows, so that the table does not grow in steps. Call it before any row is removed. */
  reserve(rows: number): void {
    const capacity = 2 ** Math.ceil(Math.log2(Math.max(1, rows)))
    if (capacity > this.#next.length) this.#grow(capacity)
  }

  /**
   * Finds a row with the selected digest that was added with this scope and passes the test; of several the last added one, or the last one
   * before `after`, which an earlier call has returned.
   */
  find(scope: number, test: (row: number) => boolean, after?: number): number {
    const bucket = hashSelected(scope) & (this.#buckets.length - 1)
    let row = after === undefined ? this.#buckets[bucket]! : this.#next[after]!
    for (; row !== noRow; row = this.#next[row]!) if (this.#hasSelected(row) && test(row)) return row
    return noRow
  }

  /** Adds a row for the selected digest. The values of its columns are undefined. */
  add(scope: number): number {
    let row = this.#firstFree
    if (row !== noRow) this.#firstFree = this.#next[row]!
    else {
      if (this.#used === this.#next.length) this.#grow(this.#used * 2)
      row = this.#used++
    }
    this.#digests.set(selectedStart, row * wordsPerDigest)
    if (selectedLength === 64) this.#longDigests.set(row, Buffer.from(selected.subarray(32)))
    this.#hashes[row] = hashSelected(scope)
    this.#addToBucket(row)
    return row
  }

  remove(row: number): void {
    const [next, previous] = [this.#next[row]!, this.#previous[row]!]
    if (next !== noRow) this.#previous[next] = previous
    if (previous !== noRow) this.#next[previous] = next
    else this.#buckets[this.#hashes[row]! & (this.#buckets.length - 1)] = next
    this.#longDigests.delete(row)
    this.#next[row] = this.#firstFree
    this.#firstFree = row
  }

  digest(row: number): Digest {
    const at = row * wordsPerDigest * 4
    const rest = this.#longDigests.get(row)
    const start = this.#bytes.toString('hex', at, at + wordsPerDigest * 4)
    return (rest ? `sha512:${start}${rest.toString('hex')}` : `sha256:${start}`) as Digest
  }

  #addToBucket(row: number): void {
    const bucket = this.#hashes[row]! & (this.#buckets.length - 1)
    const next = this.#buckets[bucket]!
    if (next !== noRow) this.#previous[next] = row
    this.#next[row] = next
    this.#previous[row] = noRow
    this.#buckets[bucket] = row
  }

  /** Grows the table. No row may be free. */
  #grow(capacity: number): void {
    this.#digests = grow(this.#digests, capacity * wordsPerDigest)
    this.#bytes = Buffer.from(this.#digests.buffer)
    this.#hashes = grow(this.#hashes, capacity)
    this.#next = grow(this.#next, capacity)
    this.#previous = grow(this.#previous, capacity)
    const columns: Record<string, Column> = this.columns
    for (const [name, column] of Object.entries(columns)) columns[name] = grow(column, capacity)
    this.#buckets = new Int32Array(capacity).fill(noRow)
    for (let row = 0; row < this.#used; row++) this.#addToBucket(row)
  }

  #hasSelected(row: number): boolean {
    const at = row * wordsPerDigest
    for (let word = 0; word < wordsPerDigest; word++) if (this.#digests[at + word] !== selectedWords[word]) return false
    const rest = this.#longDigests.get(row)
    return selectedLength === 64 ? rest !== undefined && selected.compare(rest, 0, 32, 32, 64) === 0 : !rest
  }
}

function hashSelected(scope: number): number {
  let hash = seed ^ scope
  const words = selectedLength / 4
  for (let word = 0; word < words; word++) {
    hash = Math.imul(hash ^ selectedWords[word]!, multiplier)
    // The secret factor hides which bits of the next word would undo a change.
    hash = Math.imul(hash ^ (hash >>> 15), secret)
  }
  return hash >>> 0
}

function grow<T extends Column>(column: T, length: number): T {
  const grown = new (column.constructor as new (length: number) => T)(length)
  grown.set(column)
  return grown
}

type Rows = Pick<DigestTable<Record<string, Column>>, 'find' | 'add' | 'remove' | 'digest'>

/** Shows the rows of one repository by digest. The values are copies. */
export class RowMap<Value> implements ReadonlyMap<Digest, Value> {
  readonly #rows = new Set<number>()
  readonly #table: Rows
  readonly #scope: number
  readonly #read: (row: number) => Value

  constructor(table: Rows, scope: number, read: (row: number) => Value) {
    this.#table = table
    this.#scope = scope
    this.#read = read
  }

  get size(): number {
    return this.#rows.size
  }

  find(digest: Digest): number {
    selectDigest(digest)
    return this.#table.find(this.#scope, (row) => this.#rows.has(row))
  }

  add(digest: Digest): number {
    selectDigest(digest)
    const row = this.#table.add(this.#scope)
    this.#rows.add(row)
    return row
  }

  remove(row: number): void {
    this.#rows.delete(row)
    this.#table.remove(row)
  }

  hasRow(row: number): boolean {
    return this.#rows.has(row)
  }

  has(digest: Digest): boolean {
    return this.find(digest) !== noRow
  }

  get(digest: Digest): Value | undefined {
    const row = this.find(digest)
    return row === noRow ? undefined : this.#read(row)
  }

  *keys(): MapIterator<Digest> {
    for (const row of this.#rows) yield this.#table.digest(row)
  }

  *values(): MapIterator<Value> {
    for (const row of this.#rows) yield this.#read(row)
  }

  *entries(): MapIterator<[Digest, Value]> {
    for (const row of this.#rows) yield [this.#table.digest(row), this.#read(row)]
  }

  [Symbol.iterator](): MapIterator<[Digest, Value]> {
    return this.entries()
  }

  forEach(visit: (value: Value, key: Digest, map: ReadonlyMap<Digest, Value>) => void): void {
    for (const [digest, value] of this) visit(value, digest, this)
  }
}

/** Numbers texts that many rows share, and counts their uses. */
export class Dictionary {
  readonly #numbers = new Map<string, number>()
  readonly #texts: string[] = []
  readonly #uses: number[] = []
  readonly #free: number[] = []

  /** Returns the number of a text, for one more use. */
  use(text: string): number {
    const known = this.#numbers.get(text)
    if (known !== undefined) {
      this.#uses[known]! += 1
      return known
    }
    const number = this.#free.pop() ?? this.#texts.length
    this.#numbers.set(text, number)
    this.#texts[number] = text
    this.#uses[number] = 1
    return number
  }

  release(number: number): void {
    this.#uses[number]! -= 1
    if (this.#uses[number] !== 0) return
    this.#numbers.delete(this.#texts[number]!)
    this.#texts[number] = ''
    this.#free.push(number)
  }

  /** Returns the number of a text that is in use. */
  find(text: string): number | undefined {
    return this.#numbers.get(text)
  }

  /** Returns the numbers of the texts that are in use. */
  numbers(): Iterable<number> {
    return this.#numbers.values()
  }

  get(number: number): string {
    return this.#texts[number]!
  }
}
