import type { ManifestLink } from '../oci/content.ts'
import { type Digest, getDigestHex, parseDigest } from '../oci/reference.ts'
import { type Identity, parseIdentity } from '../oci/registry.ts'
import { formatLine } from './log.ts'
import type { Operation, PackedLinks, Repository } from './metadata.ts'

export const manifestFlag = 1
const sha512Flag = 2
/** Counts the bytes of a link before its digest. */
export const headBytes = 9
const maxSize = 2 ** 48 - 1

/** Packs links. Leaves out those with an impossible size, which no blob can have. */
export function packLinks(links: readonly ManifestLink[]): PackedLinks {
  const types = new Map<string, number>()
  const bytes = Buffer.allocUnsafeSlow(links.length * (headBytes + 64))
  let at = 0
  for (const { kind, digest, size, mediaType } of links) {
    if (size > maxSize) continue
    const type = types.get(mediaType) ?? types.size
    types.set(mediaType, type)
    const length = bytes.write(getDigestHex(digest), at + headBytes, 'hex')
    bytes[at] = toFlag(kind) | (length === 64 ? sha512Flag : 0)
    bytes.writeUInt16LE(type, at + 1)
    bytes.writeUIntLE(size, at + 3, 6)
    at += headBytes + length
  }
  return { types: [...types.keys()], bytes: bytes.subarray(0, at) }
}

export function toFlag(kind: ManifestLink['kind']): number {
  return kind === 'manifest' ? manifestFlag : 0
}

export function getDigestBytes(flags: number): number {
  return (flags & sha512Flag) === 0 ? 32 : 64
}

/** Returns the same bytes. The type of packed links is not `Buffer`, which the declarations of the package could not name. */
export function toBuffer({ buffer, byteOffset, length }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, length)
}

type Fields<Operation> = {
  readonly [Field in Exclude<keyof Operation, 'op'>]-?: (value: unknown) => Operation[Field]
}

const used = { usedAt: readNumber }
const pulled = { pulls: readNumber, lastPulled: readNumber }
const page = { subject: readDigest, identity: readIdentity, query: readText }

/** Lists the fields of each operation in the order of its list on the disk, with the function that checks and converts the JSON value. */
const fields: { readonly [Name in Operation['op']]: Fields<Extract<Operation, { op: Name }>> } = {
  tag: { tag: readText, digest: readDigest, identity: readIdentity, updatedAt: readNumber, ...pulled },
  untag: { tag: readText, updatedAt: optional(readNumber) },
  manifest: {
    digest: readDigest,
    mediaType: readText,
    size: readNumber,
    identity: readIdentity,
    updatedAt: readNumber,
    ...pulled,
    ...used,
    links: optional(readLinks),
    subject: optional(readDigest),
    artifactType: optional(readText),
  },
  'drop-manifest': { digest: readDigest },
  blob: { digest: readDigest, size: readNumber, identity: readIdentity, ...used },
  'drop-blob': { digest: readDigest },
  referrers: {
    ...page,
    digest: readDigest,
    size: readNumber,
    next: optional(readText),
    filtersApplied: optional(readText),
    isWithoutApi: (value) => value === true,
    ...used,
  },
  'drop-referrers': page,
  'use-tag': { tag: readText, ...pulled },
  'use-manifest': { digest: readDigest, ...pulled, ...used },
  'use-blob': { digest: readDigest, ...used },
}
const fieldLists = new Map(Object.entries(fields).map(([op, list]) => [op, Object.entries(list)]))

/** Reports whether an operation removes an entry. */
export function isRemoval({ op }: Operation): boolean {
  return op === 'untag' || op.startsWith('drop-')
}

/** Formats the line of a commit. */
export function formatCommit(
  sequence: number,
  { host, name }: Pick<Repository, 'host' | 'name'>,
  operations: readonly Operation[],
): string {
  return formatLine({ sequence, repository: `${host}/${name}`, operations: formatOperations(operations) })
}

/** Formats the operations of a commit as JSON in ASCII: a list for each, with its name and its values. */
function formatOperations(operations: readonly Operation[]): string {
  const json = JSON.stringify(operations.map(toList))
  return json.replaceAll(/[^\0-\x7f]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

function toList(operation: Operation): unknown[] {
  const values = operation as unknown as Record<string, unknown>
  const list: unknown[] = [operation.op]
  for (const [field] of fieldLists.get(operation.op)!)
    list.push(field === 'links' ? toJson(values[field]) : values[field])
  while (list.at(-1) === undefined) list.pop()
  return list
}

function toJson(links: unknown): unknown {
  const { types, bytes } = (links ?? {}) as Partial<PackedLinks>
  return types && bytes && bytes.length > 0 ? [types, toBuffer(bytes).toString('base64')] : undefined
}

/** Parses the operations of a commit. Throws a SyntaxError for any other text. */
export function parseOperations(json: string): Operation[] {
  return readList(JSON.parse(json)).map(parseOperation)
}

function parseOperation(json: unknown): Operation {
  const list = readList(json)
  const operation: Record<string, unknown> = { op: list[0] }
  let at = 0
  for (const [field, read] of fieldLists.get(list[0] as string) ?? throwDamaged()) {
    const value = read(list[++at] ?? undefined)
    if (value !== undefined) operation[field] = value
  }
  return operation as unknown as Operation
}

/** Checks and converts the fields of an operation from JSON values by name. Throws a SyntaxError for an unexpected value. */
export function readOperation<Name extends Operation['op']>(
  op: Name,
  values: Readonly<Record<string, unknown>>,
): Extract<Operation, { op: Name }> {
  const list = fieldLists.get(op)!.map(([field]) => values[field])
  return parseOperation([op, ...list]) as Extract<Operation, { op: Name }>
}

function optional<Value>(read: (value: unknown) => Value): (value: unknown) => Value | undefined {
  return (value) => (value === undefined ? undefined : read(value))
}

function readLinks(value: unknown): PackedLinks {
  const [names, packed] = readList(value)
  const types = readList(names).map(readText)
  const bytes = Buffer.from(readText(packed), 'base64')
  let at = 0
  while (at + headBytes <= bytes.length) {
    if (bytes.readUInt16LE(at + 1) >= types.length) return throwDamaged()
    at += headBytes + getDigestBytes(bytes[at]!)
  }
  return at === bytes.length ? { types, bytes } : throwDamaged()
}

/** Returns the value if it is a list; throws a SyntaxError otherwise. */
export function readList(value: unknown): unknown[] {
  return Array.isArray(value) ? value : throwDamaged()
}

/** Returns the value if it is a string; throws a SyntaxError otherwise. */
export function readText(value: unknown): string {
  return typeof value === 'string' ? value : throwDamaged()
}

/** Returns the value if it is a finite number that is not negative; throws a SyntaxError otherwise. */
export function readNumber(value: unknown): number {
  return typeof value === 'number' && Number.isFinite(value) && value >= 0 ? value : throwDamaged()
}

/** Returns the value if it is a digest; throws a SyntaxError otherwise. */
export function readDigest(value: unknown): Digest {
  return parseDigest(readText(value)) ?? throwDamaged()
}

function readIdentity(value: unknown): Identity {
  return parseIdentity(readText(value))
}

/** Throws a SyntaxError, which marks a record as damaged. */
export function throwDamaged(): never {
  throw new SyntaxError('a record has an unexpected value')
}

/** Sets the share of the maximum weight that is kept when entries are dropped, and the share that one repository may have. */
const keptShare = 0.75
/** Sets the entries between two pauses. */
const pauseEvery = 500

interface Heavy {
  /** Estimates the memory of the affected repositories, bytes, as it is now. */
  readonly total: { readonly weight: number }
  readonly affected: Iterable<Repository>
  /** Sets the weight that may stay, bytes. */
  readonly limit: number
}

/** Finds what takes too much memory: the changed repository alone, or all together; undefined if neither does. */
export function findHeavy(
  repositories: { readonly weight: number; all(): Iterable<Repository> },
  changed: Repository | undefined,
  maxWeight: number,
): Heavy | undefined {
  const limit = maxWeight * keptShare
  if (changed && changed.weight > limit) return { total: changed, affected: [changed], limit: limit * keptShare }
  if (repositories.weight <= maxWeight) return undefined
  return { total: repositories, affected: repositories.all(), limit }
}

/** Drops the least recently used entries, which upstreams are asked for again when needed. The caller may pause at every `yield`. */
export function* dropLeastUsed(
  { total, affected, limit }: Heavy,
  drop: (repository: Repository, removals: readonly Operation[]) => void,
): Generator<undefined, true> {
  const times: number[] = []
  for (const repository of affected)
    for (const { usedAt } of listEntries(repository)) if (times.push(usedAt) % pauseEvery === 0) yield
  // Entries weigh much the same, so that the oldest ones of this share weigh about as much as must go.
  const share = 1 - limit / total.weight
  const cutoff = Float64Array.from(times).toSorted()[Math.ceil(times.length * share)] ?? Infinity
  for (const repository of affected) {
    let removals: Operation[] = []
    for (const { usedAt, removal } of listEntries(repository)) {
      if (usedAt > cutoff || removals.push(removal) < pauseEvery) continue
      drop(repository, removals)
      if (total.weight <= limit) return true
      removals = []
      yield
    }
    if (removals.length > 0) drop(repository, removals)
    if (total.weight <= limit) return true
    yield
  }
  return true
}

function* listEntries(repository: Repository): Generator<{ readonly usedAt: number; readonly removal: Operation }> {
  const { tags, manifests, blobs, referrers } = repository
  for (const [digest, { usedAt }] of manifests) yield { usedAt, removal: { op: 'drop-manifest', digest } }
  for (const [tag, { digest }] of tags)
    yield { usedAt: manifests.get(digest)?.usedAt ?? 0, removal: { op: 'untag', tag } }
  for (const [digest, { usedAt }] of blobs) yield { usedAt, removal: { op: 'drop-blob', digest } }
  for (const page of referrers.values()) yield { usedAt: page.usedAt, removal: { ...page, op: 'drop-referrers' } }
}
