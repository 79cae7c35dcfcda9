import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import { type Identity, parseIdentity } from '../oci/registry.ts'
import {
  type Blob,
  type Manifest,
  type Operation,
  type ReferrersPage,
  type Repository,
  type Tag,
  toReferrersKey,
  weights,
} from './metadata.ts'
import { noRow, RowMap } from './digest-table.ts'
import { isRemoval, packLinks } from './operations.ts'
import { Tables } from './tables.ts'

/** Limits the manifests that `getParents` returns. */
const maxParents = 100

/** Yields operations that create a repository. May omit entries that are removed during the iteration. */
export function* toOperations(repository: Repository): Generator<Operation, void> {
  for (const [digest, blob] of repository.blobs) yield { op: 'blob', digest, ...blob }
  for (const [digest, manifest] of repository.manifests)
    yield { op: 'manifest', digest, ...manifest, links: packLinks(repository.getLinks(digest)) }
  for (const [tag, value] of repository.tags) yield { op: 'tag', tag, ...value }
  for (const page of repository.referrers.values()) yield { op: 'referrers', ...page }
}

/** Keeps all repositories in memory. */
export class Repositories {
  readonly #repositories = new Map<string, StoredRepository>()
  readonly #tables: Tables
  #lastNumber = 0
  #weight = 0

  /** `countsHolders`: makes `isHeld` possible, which only a store without other references needs. */
  constructor(countsHolders: boolean) {
    this.#tables = new Tables(countsHolders)
  }

  /** Makes room for links before they are loaded. */
  reserveLinks(links: number): void {
    this.#tables.links.reserve(links)
  }

  /** Estimates the memory of all entries, bytes. */
  get weight(): number {
    return this.#weight
  }

  get(host: string, name: string): Repository | undefined {
    return this.#repositories.get(`${host}/${name}`)
  }

  /** Returns an iterable that may be iterated several times. */
  all(): Iterable<Repository> {
    return { [Symbol.iterator]: () => this.#repositories.values() }
  }

  /** Reports whether any repository has this blob or manifest. */
  isHeld(digest: Digest): boolean {
    return this.#tables.isHeld(digest)
  }

  /**
   * Applies the removals among the operations. Returns the operations that restore the removed entries, whose content counts as held until
   * `restore`.
   */
  hide(host: string, name: string, operations: readonly Operation[]): Operation[] {
    const hidden: Operation[] = []
    for (const removal of operations.filter(isRemoval)) {
      const entry = this.findEntry(host, name, removal)
      this.apply(host, name, removal)
      if (entry && !this.findEntry(host, name, removal)) hidden.push(entry)
    }
    this.#countHolders(hidden, 1)
    return hidden
  }

  restore(host: string, name: string, hidden: readonly Operation[]): void {
    this.#countHolders(hidden, -1)
    for (const entry of hidden.toReversed()) if (!this.findEntry(host, name, entry)) this.apply(host, name, entry)
  }

  /** Returns the latest time of a use, running time ms. */
  findLatestUse(): number {
    let latest = 0
    // The rows of removed manifests and blobs count, too.
    for (const { columns } of [this.#tables.manifests, this.#tables.blobs])
      for (const time of columns.usedAt) latest = Math.max(latest, time)
    for (const { referrers } of this.#repositories.values())
      for (const { usedAt } of referrers.values()) latest = Math.max(latest, usedAt)
    return latest
  }

  /** Applies an operation. Creates the repository for the first entry, and removes it with the last one. */
  apply(host: string, name: string, operation: Operation): void {
    const key = `${host}/${name}`
    const known = this.#repositories.get(key)
    const repository = known ?? new StoredRepository(host, name, ++this.#lastNumber, this.#tables)
    const before = known ? repository.weight : 0
    repository.apply(operation)
    const { tags, manifests, blobs, referrers } = repository
    const isEmpty = tags.size + manifests.size + blobs.size + referrers.size === 0
    this.#weight += (isEmpty ? 0 : repository.weight) - before
    if (isEmpty) this.#repositories.delete(key)
    else if (!known) this.#repositories.set(key, repository)
  }

  /** Returns the operation that creates the entry which an operation changes; undefined when there is no such entry. */
  findEntry(host: string, name: string, operation: Operation): Operation | undefined {
    return this.#repositories.get(`${host}/${name}`)?.findEntry(operation)
  }

  #countHolders(entries: readonly Operation[], change: 1 | -1): void {
    for (const entry of entries)
      if (entry.op === 'blob' || entry.op === 'manifest') this.#tables.countHolder(entry.digest, change)
  }
}

class StoredRepository implements Repository {
  readonly host: string
  readonly name: string
  readonly tags = new Map<string, Tag>()
  readonly manifests: RowMap<Manifest>
  readonly blobs: RowMap<Blob>
  readonly referrers = new Map<string, ReferrersPage>()
  readonly #number: number
  readonly #tables: Tables
  readonly #subjects = new Map<Digest, Set<Digest>>()
  /** Estimates the memory of the links and texts, bytes. */
  #extraWeight = 0

  /** `number` is unique among all repositories of the tables. */
  constructor(host: string, name: string, number: number, tables: Tables) {
    this.host = host
    this.name = name
    this.#number = number
    this.#tables = tables
    this.manifests = new RowMap(tables.manifests, number, (row) => tables.readManifest(row))
    this.blobs = new RowMap(tables.blobs, number, (row) => tables.readBlob(row))
  }

  get weight(): number {
    const { tags, manifests, blobs, referrers } = this
    const entries =
      tags.size * weights.tag +
      manifests.size * weights.manifest +
      blobs.size * weights.blob +
      referrers.size * weights.referrers
    return weights.repository + entries + this.#extraWeight
  }

  getLinks(manifest: Digest): ManifestLink[] {
    const row = this.manifests.find(manifest)
    return row === noRow ? [] : this.#tables.links.list(this.#tables.manifests.columns.firstLink[row]!)
  }

  findLink(digest: Digest, identity: Identity, kind: ManifestLink['kind']): ManifestLink | undefined {
    const { identities, links } = this.#tables
    const number = identities.find(identity)
    const row = number === undefined ? noRow : links.find({ digest, kind, ...this.#getLinkScope(number) })
    return row === noRow ? undefined : links.read(row, digest)
  }

  findLinkIdentities(digest: Digest): Identity[] {
    const { identities, links } = this.#tables
    const isNamed = (number: number) => {
      const query = { digest, ...this.#getLinkScope(number) }
      return (['blob', 'manifest'] as const).some((kind) => links.find({ ...query, kind }) !== noRow)
    }
    return Array.from(identities.numbers())
      .filter(isNamed)
      .map((number) => parseIdentity(identities.get(number)))
  }

  getParents(digest: Digest): Digest[] {
    const { identities, links, manifests } = this.#tables
    const parents: Digest[] = []
    for (const identity of identities.numbers()) {
      const query = { digest, kind: 'manifest', ...this.#getLinkScope(identity) } as const
      for (let row = links.find(query); row !== noRow; row = links.find(query, row)) {
        if (parents.length === maxParents) return parents
        parents.push(manifests.digest(links.getManifest(row)))
      }
    }
    return parents
  }

  getReferrers(subject: Digest): ReadonlySet<Digest> {
    return this.#subjects.get(subject) ?? new Set()
  }

  apply(operation: Operation): void {
    switch (operation.op) {
      case 'tag': {
        const { tag, digest, identity, updatedAt, pulls, lastPulled } = operation
        this.tags.set(tag, { digest, identity, updatedAt, pulls, lastPulled })
        return
      }
      case 'untag': {
        const { tag, updatedAt } = operation
        if (updatedAt === undefined || this.tags.get(tag)?.updatedAt === updatedAt) this.tags.delete(tag)
        return
      }
      case 'manifest':
        return this.#setManifest(operation)
      case 'drop-manifest':
        return this.#dropManifest(operation.digest)
      case 'blob':
        return this.#setBlob(operation)
      case 'drop-blob':
        return this.#dropBlob(operation.digest)
      case 'referrers': {
        const { op: _, ...page } = operation
        // Set it last: the map is ordered by the time of the store.
        this.#dropReferrers(page)
        this.referrers.set(toReferrersKey(page), page)
        this.#extraWeight += weighTexts(page)
        return
      }
      case 'drop-referrers':
        return this.#dropReferrers(operation)
      case 'use-tag': {
        const { tag, pulls, lastPulled } = operation
        const known = this.tags.get(tag)
        if (known) this.tags.set(tag, { ...known, pulls, lastPulled })
        return
      }
      case 'use-manifest': {
        const row = this.manifests.find(operation.digest)
        if (row === noRow) return
        const { columns } = this.#tables.manifests
        columns.pulls[row] = operation.pulls
        columns.lastPulled[row] = operation.lastPulled
        columns.usedAt[row] = operation.usedAt
        return
      }
      case 'use-blob': {
        const row = this.blobs.find(operation.digest)
        if (row !== noRow) this.#tables.blobs.columns.usedAt[row] = operation.usedAt
      }
    }
  }

  findEntry(operation: Operation): Operation | undefined {
    if ('tag' in operation) {
      const tag = this.tags.get(operation.tag)
      return tag && { op: 'tag', tag: operation.tag, ...tag }
    }
    if (operation.op === 'referrers' || operation.op === 'drop-referrers') {
      const page = this.referrers.get(toReferrersKey(operation))
      return page && { op: 'referrers', ...page }
    }
    const { digest } = operation
    if (operation.op.endsWith('blob')) {
      const blob = this.blobs.get(digest)
      return blob && { op: 'blob', digest, ...blob }
    }
    const manifest = this.manifests.get(digest)
    return manifest && { op: 'manifest', digest, ...manifest, links: packLinks(this.getLinks(digest)) }
  }

  #setManifest(manifest: Operation & { readonly op: 'manifest' }): void {
    const { digest, identity, links, subject, artifactType } = manifest
    this.#dropManifest(digest)
    const row = this.manifests.add(digest)
    const tables = this.#tables
    const { columns } = tables.manifests
    columns.mediaType[row] = tables.types.use(manifest.mediaType)
    columns.identity[row] = tables.identities.use(identity)
    columns.size[row] = manifest.size
    columns.updatedAt[row] = manifest.updatedAt
    columns.pulls[row] = manifest.pulls
    columns.lastPulled[row] = manifest.lastPulled
    columns.usedAt[row] = manifest.usedAt
    const { scope } = this.#getLinkScope(columns.identity[row])
    columns.firstLink[row] = links ? tables.links.add(row, scope, links) : noRow
    columns.linkWeight[row] = links
      ? links.bytes.length * weights.linkByte + links.types.reduce((sum, type) => sum + type.length, 0)
      : 0
    this.#extraWeight += columns.linkWeight[row]
    tables.countHolder(digest, 1)
    if (subject === undefined) return
    tables.referrers.set(row, { subject, ...(artifactType !== undefined && { artifactType }) })
    this.#subjects.set(subject, (this.#subjects.get(subject) ?? new Set()).add(digest))
    this.#extraWeight += weights.tag
  }

  #dropManifest(digest: Digest): void {
    const row = this.manifests.find(digest)
    if (row === noRow) return
    const tables = this.#tables
    const { columns } = tables.manifests
    tables.links.remove(columns.firstLink[row]!)
    tables.types.release(columns.mediaType[row]!)
    tables.identities.release(columns.identity[row]!)
    this.#extraWeight -= columns.linkWeight[row]!
    const subject = tables.referrers.get(row)?.subject
    if (subject !== undefined) {
      tables.referrers.delete(row)
      this.#subjects.get(subject)?.delete(digest)
      if (this.#subjects.get(subject)?.size === 0) this.#subjects.delete(subject)
      this.#extraWeight -= weights.tag
    }
    this.manifests.remove(row)
    tables.countHolder(digest, -1)
  }

  #setBlob({ digest, size, identity, usedAt }: Operation & { readonly op: 'blob' }): void {
    this.#dropBlob(digest)
    const row = this.blobs.add(digest)
    const { columns } = this.#tables.blobs
    columns.size[row] = size
    columns.identity[row] = this.#tables.identities.use(identity)
    columns.usedAt[row] = usedAt
    this.#tables.countHolder(digest, 1)
  }

  #dropBlob(digest: Digest): void {
    const row = this.blobs.find(digest)
    if (row === noRow) return
    this.#tables.identities.release(this.#tables.blobs.columns.identity[row]!)
    this.blobs.remove(row)
    this.#tables.countHolder(digest, -1)
  }

  #dropReferrers(page: Pick<ReferrersPage, 'subject' | 'identity' | 'query'>): void {
    const key = toReferrersKey(page)
    const known = this.referrers.get(key)
    if (known) this.#extraWeight -= weighTexts(known)
    this.referrers.delete(key)
  }

  /** Selects the links of this repository's manifests of one identity. */
  #getLinkScope(identity: number): { readonly scope: number; readonly isFrom: (manifest: number) => boolean } {
    const { columns } = this.#tables.manifests
    return {
      scope: (this.#number << 8) ^ identity,
      isFrom: (manifest) => this.manifests.hasRow(manifest) && columns.identity[manifest] === identity,
    }
  }
}

function weighTexts({ query, next, filtersApplied }: ReferrersPage): number {
  return query.length + (next?.length ?? 0) + (filtersApplied?.length ?? 0)
}
