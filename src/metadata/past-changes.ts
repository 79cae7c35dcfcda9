import { writeFileAtomic } from '../lib/fs.ts'
import { isObject, readJsonFile } from '../lib/json.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'

/** Names the file in the state folder. */
export const pastChangesName = 'past-changes.json'

/** Limits the remembered removals, and the remembered tags; the newest stay. */
const maxEntries = 5000
/** Exceeds the size of a file with all entries, bytes. */
const maxFileBytes = 8 * 1024 * 1024

const removalReasons = ['evicted', 'removed', 'damaged'] as const

/** Distinguishes removals to keep a limit, by a command, and of bytes that were wrong. */
type RemovalReason = (typeof removalReasons)[number]

/** Describes the removal of content, or of a tag. */
export interface Removal {
  readonly why: RemovalReason
  /** Wall clock ms. */
  readonly at: number
}

/** Describes when a tag began to point to its digest. */
export interface TagChange {
  /** Wall clock ms. */
  readonly at: number
  /** Holds the digest that the tag had before; undefined for a tag that was new. */
  readonly from: Digest | undefined
}

/**
 * Remembers what was removed from the cache and how tags moved, to explain a miss. It is a help for people: nothing is served by it, and a
 * damaged or lost file costs only explanations.
 */
export class PastChanges {
  /** Holds the removals by digest, or by `toTagKey`; the newest last. */
  readonly #removals = new Map<string, Removal>()
  /** Holds the changes of tags by `toTagKey`; the newest last. */
  readonly #tags = new Map<string, TagChange>()
  readonly #now: () => number
  #isSaved = true

  /** Takes `now`, which returns the wall-clock time, ms. */
  constructor(now: () => number) {
    this.#now = now
  }

  recordRemoval(key: Digest | TagKey, why: RemovalReason): void {
    this.#set(this.#removals, key, { why, at: this.#now() })
  }

  recordTag(key: TagKey, from: Digest | undefined): void {
    this.#set(this.#tags, key, { at: this.#now(), from })
  }

  /** Forgets the removal of content that is stored again. */
  forgetRemoval(key: Digest | TagKey): void {
    if (this.#removals.delete(key)) this.#isSaved = false
  }

  findRemoval(key: Digest | TagKey): Removal | undefined {
    return this.#removals.get(key)
  }

  findTagChange(key: TagKey): TagChange | undefined {
    return this.#tags.get(key)
  }

  /** Loads what was saved. Ignores a file that is missing or damaged. */
  async load(path: string): Promise<void> {
    const { removals, tags } = (await readJsonFile(path, maxFileBytes)) ?? {}
    for (const [key, value] of listEntries(removals)) {
      const why = removalReasons.find((reason) => reason === value['why'])
      if (why !== undefined && isTime(value['at'])) this.#removals.set(key, { why, at: value['at'] })
    }
    for (const [key, { at, from }] of listEntries(tags))
      if (isTime(at)) this.#tags.set(key, { at, from: typeof from === 'string' ? parseDigest(from) : undefined })
  }

  /** Saves everything, if it has changed since the last time. */
  async save(path: string): Promise<void> {
    if (this.#isSaved) return
    this.#isSaved = true
    try {
      const [removals, tags] = [Object.fromEntries(this.#removals), Object.fromEntries(this.#tags)]
      await writeFileAtomic(path, JSON.stringify({ removals, tags }))
    } catch (error) {
      this.#isSaved = false
      throw error
    }
  }

  #set<Value>(entries: Map<string, Value>, key: string, value: Value): void {
    this.#isSaved = false
    entries.delete(key)
    entries.set(key, value)
    if (entries.size <= maxEntries) return
    const [oldest] = entries.keys()
    entries.delete(oldest!)
  }
}

/** Identifies a tag: `docker.io/library/redis:7`. */
export type TagKey = `${string}/${string}:${string}`

export function toTagKey({ host, name }: { readonly host: string; readonly name: string }, tag: string): TagKey {
  return `${host}/${name}:${tag}`
}

function listEntries(saved: unknown): [string, Record<string, unknown>][] {
  if (!isObject(saved)) return []
  return Object.entries(saved)
    .filter((entry): entry is [string, Record<string, unknown>] => isObject(entry[1]))
    .slice(-maxEntries)
}

function isTime(value: unknown): value is number {
  // A Date holds no later time.
  return typeof value === 'number' && value >= 0 && value <= 8.64e15
}
