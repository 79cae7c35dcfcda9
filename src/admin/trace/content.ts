import { explainMissingGrant, findRemovalMiss, isValidFor } from '../../cache/grants.ts'
import type { DownloadReport } from '../../oci/registry.ts'
import { createPauses } from '../../lib/async.ts'
import { isObject, readJsonObject } from '../../lib/json.ts'
import { systemClock } from '../../lib/time.ts'
import type { Repository } from '../../metadata/metadata.ts'
import type { PastChanges } from '../../metadata/past-changes.ts'
import { isIndexType, maxManifestBytes, outlineManifest, type ManifestLink } from '../../oci/content.ts'
import type { Digest } from '../../oci/reference.ts'
import { anonymousIdentity, type Identity } from '../../oci/registry.ts'
import type { FileBlobStore } from '../../store/file-blob-store.ts'
import type { TracedContent } from './report.ts'

export interface ContentSources {
  readonly blobs: Pick<FileBlobStore, 'stat' | 'check' | 'read'>
  /** Holds the repository of the image; undefined while nothing is recorded of it. */
  readonly record: Repository | undefined
  /** Identifies requests of this machine; undefined in the registry, whose content needs no grant. */
  readonly identity: Identity | undefined
  /** Holds the other repositories of the same store. */
  readonly others: Iterable<Repository>
  readonly downloads: readonly DownloadReport[]
  readonly pastChanges: PastChanges
  /** Looks like `linux/arm64` or `linux/arm/v7`. */
  readonly platform: string
}

/** Holds the content of an image as a list, each manifest before what it names. */
export interface ContentTrace {
  readonly content: TracedContent[]
  /** Is true when it is known what every manifest that a pull needs names, so that the list has all that a pull needs. */
  readonly isComplete: boolean
  /** Is true when an index that is held has no manifest for the platform. */
  readonly lacksPlatform: boolean
}

/** Limits the listed content. */
const maxContent = 1000
/** Limits the listed grants of one manifest or blob. */
const maxGrants = 20

interface Node {
  readonly digest: Digest
  readonly kind: TracedContent['kind']
  readonly mediaType?: string | undefined
  readonly size?: number | undefined
  readonly platform?: string | undefined
  readonly parent?: Digest
  readonly isNeeded: boolean
}

/** Walks an image from its root manifest. Changes nothing: damaged content stays where it is, and no use is recorded. */
export async function traceContent(root: Digest, sources: ContentSources): Promise<ContentTrace> {
  const content: TracedContent[] = []
  const seen = new Set<Digest>([root])
  const rootType = sources.record?.manifests.get(root)?.mediaType
  const nodes: Node[] = [{ digest: root, kind: toManifestKind(rootType), mediaType: rootType, isNeeded: true }]
  let isComplete = true
  let lacksPlatform = false
  // The list grows while it is walked.
  for (const node of nodes) {
    if (content.length === maxContent) break
    const isManifest = node.kind === 'index' || node.kind === 'manifest'
    const manifest = isManifest ? await readManifest(node, sources) : undefined
    if (node.isNeeded && manifest && !manifest.isKnown) isComplete = false
    if (node.isNeeded && manifest?.isHeld && manifest.lacksPlatform) lacksPlatform = true
    content.push(await describe(node, sources, manifest))
    for (const child of manifest?.children ?? [])
      if (!seen.has(child.digest)) nodes.push(child)
      else if (child.isNeeded) markNeeded(nodes, child.digest)
    for (const child of manifest?.children ?? []) seen.add(child.digest)
  }
  return { content: orderAsTree(content), isComplete, lacksPlatform }
}

/** Marks content as needed that an earlier manifest has named without need. */
function markNeeded(nodes: Node[], digest: Digest): void {
  const at = nodes.findIndex((node) => node.digest === digest)
  if (at !== -1) nodes[at] = { ...nodes[at]!, isNeeded: true }
}

/** Orders content so that each manifest is followed by what it names. */
function orderAsTree(content: readonly TracedContent[]): TracedContent[] {
  const children = new Map<string | undefined, TracedContent[]>()
  for (const one of content) children.set(one.parent, [...(children.get(one.parent) ?? []), one])
  const add = (parent: string | undefined): TracedContent[] =>
    (children.get(parent) ?? []).flatMap((one) => [one, ...add(one.digest)])
  return add(undefined)
}

interface ReadManifest {
  readonly state: 'held' | 'missing' | 'damaged'
  readonly isHeld: boolean
  /** Is true when it is known what the manifest names, and which of that a client takes. */
  readonly isKnown: boolean
  readonly isIndex: boolean
  readonly mediaType: string | undefined
  readonly children: readonly Node[]
  readonly lacksPlatform: boolean
}

/** Reads a manifest from the store; where its bytes are missing, what it names is taken from the metadata. */
async function readManifest(node: Node, { blobs, record, platform }: ContentSources): Promise<ReadManifest> {
  const { digest, isNeeded } = node
  const check = (await blobs.stat(digest)) === undefined ? 'absent' : await checkBlob(blobs, digest)
  const bytes = check === 'sound' ? await blobs.read(digest, maxManifestBytes) : undefined
  const json = bytes && (await readJsonObject(bytes))
  const outline = bytes && (await outlineManifest(bytes, node.mediaType ?? ''))
  if (json === undefined || outline === undefined || typeof outline === 'string') {
    const isIndex = node.kind === 'index'
    const links = record?.getLinks(digest) ?? []
    const children = links.map((link): Node => {
      const isNeededBlob = isNeeded && !isIndex && link.kind === 'blob'
      return { ...toNode(link, digest), ...(link.kind === 'blob' && { kind: guessKind(link) }), isNeeded: isNeededBlob }
    })
    return {
      state: check === 'damaged' ? 'damaged' : 'missing',
      isHeld: false,
      // The metadata do not tell the platforms of an index.
      isKnown: !isIndex && links.length > 0,
      isIndex,
      mediaType: undefined,
      children,
      lacksPlatform: false,
    }
  }
  const platforms = listPlatforms(json['manifests'])
  const isIndex = Array.isArray(json['manifests'])
  const chosen = isIndex ? choosePlatform(platforms, platform) : undefined
  const config = isObject(json['config']) ? json['config']['digest'] : undefined
  const layers = new Set(listDigests(json['layers']))
  const children = outline.links.map((link): Node => {
    const child = toNode(link, digest)
    const kind =
      link.kind === 'manifest'
        ? child.kind
        : link.digest === config
          ? 'config'
          : layers.has(link.digest)
            ? 'layer'
            : 'other'
    const isChosen = isNeeded && (isIndex ? link.digest === chosen : link.kind === 'blob')
    return { ...child, kind, platform: platforms.get(link.digest), isNeeded: isChosen }
  })
  const { mediaType } = outline
  const lacksPlatform = isIndex && chosen === undefined
  return { state: 'held', isHeld: true, isKnown: true, isIndex, mediaType, children, lacksPlatform }
}

/** Tells a config from a layer by its media type, where the manifest cannot be read. */
function guessKind({ mediaType }: ManifestLink): 'config' | 'layer' {
  return /config|container\.image\.v1\+json$/.test(mediaType) ? 'config' : 'layer'
}

/** Verifies a blob, and leaves a damaged one where it is. */
async function checkBlob(blobs: ContentSources['blobs'], digest: Digest): Promise<'sound' | 'damaged' | 'absent'> {
  const check = blobs.check(digest, false)
  for (;;) {
    const { done, value } = await check.next()
    if (done) return value
  }
}

function toNode({ digest, kind, mediaType, size }: ManifestLink, parent: Digest): Node {
  return {
    digest,
    kind: kind === 'manifest' ? toManifestKind(mediaType) : 'other',
    mediaType,
    size,
    parent,
    isNeeded: false,
  }
}

function toManifestKind(mediaType: string | undefined): 'index' | 'manifest' {
  return mediaType !== undefined && isIndexType(mediaType) ? 'index' : 'manifest'
}

async function describe(
  node: Node,
  sources: ContentSources,
  manifest: ReadManifest | undefined,
): Promise<TracedContent> {
  const { digest, platform, parent, isNeeded } = node
  const stored = await sources.blobs.stat(digest)
  const isHeld = manifest ? manifest.isHeld : stored !== undefined
  const download = isHeld ? undefined : sources.downloads.find((one) => one.digest === digest)
  const grants = await listGrants(digest, sources)
  const isGranted = sources.identity === undefined || grants.some(({ isValid }) => isValid)
  const mediaType = manifest?.mediaType ?? node.mediaType
  const size = stored ?? node.size ?? sources.record?.manifests.get(digest)?.size
  return {
    digest,
    kind: manifest?.isHeld ? (manifest.isIndex ? 'index' : 'manifest') : node.kind,
    ...(platform !== undefined && { platform }),
    ...(mediaType !== undefined && { mediaType: cleanWord(mediaType) }),
    ...(size !== undefined && { size }),
    state: isHeld ? 'held' : download ? 'arriving' : 'missing',
    ...(download && { download }),
    ...(isHeld ? !isGranted && { reason: explainMissingGrant(sources.record, digest).reason! } : {}),
    ...(!isHeld && !download && explainAbsence(digest, sources, manifest)),
    isNeeded,
    grants,
    ...(parent !== undefined && { parent }),
  }
}

/** Explains why content is not held. */
function explainAbsence(
  digest: Digest,
  { record, pastChanges, identity }: ContentSources,
  manifest: ReadManifest | undefined,
): Pick<TracedContent, 'reason' | 'evictedAt'> {
  if (manifest?.state === 'damaged') return { reason: 'damaged' }
  if (identity === undefined) return {}
  const { reason, evictedAt } = findRemovalMiss(pastChanges, digest) ?? {}
  if (reason !== undefined)
    return { reason, ...(evictedAt !== undefined && { evictedAt: new Date(evictedAt).toISOString() }) }
  // The bytes of a recorded manifest were lost.
  return record?.manifests.has(digest) ? {} : { reason: 'first' }
}

/** Lists who vouches for content, the repository of the image first. */
async function listGrants(
  digest: Digest,
  { record, identity, others }: ContentSources,
): Promise<TracedContent['grants']> {
  if (identity === undefined) return []
  const grants: TracedContent['grants'][number][] = []
  const add = (repository: Repository, isOwn: boolean) => {
    for (const granted of listIdentities(repository, digest))
      grants.push({
        repository: `${repository.host}/${repository.name}`,
        identity: granted === anonymousIdentity ? 'anonymous' : 'credential',
        isValid: isOwn && isValidFor({ identity: granted }, identity),
      })
  }
  if (record) add(record, true)
  const pause = createPauses(systemClock)
  let steps = 0
  for (const other of others) {
    if (grants.length >= maxGrants) break
    if (other.host !== record?.host || other.name !== record.name) add(other, false)
    if (++steps % 64 === 0) await pause()
  }
  return grants.slice(0, maxGrants)
}

function listIdentities(repository: Repository, digest: Digest): Set<Identity> {
  const found = new Set(repository.findLinkIdentities(digest))
  for (const entry of [repository.manifests.get(digest), repository.blobs.get(digest)])
    if (entry) found.add(entry.identity)
  return found
}

/** Maps the manifests of an index to their platforms. */
function listPlatforms(manifests: unknown): Map<string, string> {
  const platforms = new Map<string, string>()
  for (const entry of Array.isArray(manifests) ? (manifests as unknown[]) : []) {
    if (!isObject(entry) || typeof entry['digest'] !== 'string' || !isObject(entry['platform'])) continue
    const { os, architecture, variant } = entry['platform']
    const parts = [os, architecture, variant].filter((part) => typeof part === 'string' && part !== '')
    if (parts.length >= 2) platforms.set(entry['digest'], cleanWord(parts.join('/')))
  }
  return platforms
}

/** Chooses the manifest that a client of the platform takes: of several variants its own, then the one without, then the first. */
function choosePlatform(platforms: ReadonlyMap<string, string>, wanted: string): string | undefined {
  const [os, architecture] = wanted.split('/')
  const plain = `${os}/${architecture}`
  const found = [...platforms].filter(([, platform]) => platform === plain || platform.startsWith(`${plain}/`))
  for (const exact of [wanted, plain, `${plain}/v8`, `${plain}/v7`]) {
    const match = found.find(([, platform]) => platform === exact)
    if (match) return match[0]
  }
  return found[0]?.[0]
}

function listDigests(entries: unknown): string[] {
  const list = Array.isArray(entries) ? (entries as unknown[]) : []
  return list.flatMap((entry) => (isObject(entry) && typeof entry['digest'] === 'string' ? [entry['digest']] : []))
}

/** Limits a word of a manifest, which anybody may have written, and replaces what is not printable. */
function cleanWord(text: string): string {
  return text.slice(0, 100).replaceAll(/[^\x21-\x7e]/g, '?')
}
