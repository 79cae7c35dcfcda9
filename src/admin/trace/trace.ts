import type { PullThrough, RepositoryView } from '../../cache/pull-through.ts'
import { type PastChanges, toTagKey } from '../../metadata/past-changes.ts'
import type { Tag } from '../../metadata/metadata.ts'
import { isValidFor } from '../../cache/grants.ts'
import { OciError } from '../../oci/errors.ts'
import {
  type Digest,
  formatUpstreamSetting,
  isRepositoryName,
  parseReference,
  parseRegistryHost,
  type Reference,
} from '../../oci/reference.ts'
import type { PushedStore } from '../../registry/repositories.ts'
import type { Store } from '../../store/open-store.ts'
import type { MetadataStore } from '../../metadata/metadata-store.ts'
import type { ListedImage, TraceRequest } from '../api.ts'
import { parseUserNames } from '../names.ts'
import { traceContent } from './content.ts'
import { planPull } from './pull.ts'
import type { TraceReport } from './report.ts'

/** Limits the characters of an image's name. */
const maxImageNameLength = 600

export interface TraceSources {
  readonly cache: Pick<PullThrough, 'inspect' | 'listDownloads'>
  readonly store: Pick<Store<MetadataStore>, 'blobs' | 'metadata'>
  readonly pastChanges: PastChanges
  /** Is undefined when the registry is switched off. */
  readonly pushed: PushedStore | undefined
  readonly naming: {
    /** Reports whether `host:port` is an address of the cache. */
    readonly isCacheAddress: (host: string) => boolean
    /** Reports whether `host:port` is an address of the registry. */
    readonly isRegistryAddress: (host: string) => boolean
    readonly defaultUpstream: string
  }
  /** Describes the settings of an upstream; `isAnonymous`: it has no credential, or none is found. */
  readonly describeUpstream: (host: string, isAnonymous: boolean) => Omit<NonNullable<TraceReport['upstream']>, 'state'>
  /** Lists the cached images, to complete the first digits of a digest. */
  readonly listImages: () => Promise<readonly ListedImage[]>
  /** Returns the wall-clock time, ms. */
  readonly now: () => number
}

/** Explains an image: what is held of it, and what a pull would do now. Changes nothing. Throws an OciError 400 for a bad name. */
export async function traceImage(request: TraceRequest, sources: TraceSources): Promise<TraceReport> {
  const platform = parsePlatform(request.platform)
  const image =
    readManifestUrl(request.image.trim()) ?? request.image.trim().replace(/^(?:docker|oci|https?):\/\//i, '')
  const slash = image.indexOf('/')
  const host = image.slice(0, Math.max(0, slash)).toLowerCase()
  if (sources.naming.isRegistryAddress(host)) return tracePushed(host, image.slice(slash + 1), platform, sources)
  return traceCached(image, platform, sources)
}

/** Returns the name of the image in the URL of a manifest at a listener, as `mirror trace` and logs show it. */
function readManifestUrl(text: string): string | undefined {
  const match = /^(?:https?:\/\/([^/]+))?\/v2\/(.+)\/manifests\/([^/?#]+)(?:\?ns=([^&#]+))?$/i.exec(text)
  if (!match) return undefined
  const [, host, name, reference = '', ns] = match
  const registry = ns === undefined ? host : decodeText(ns)
  const end = `${name}${reference.includes(':') ? '@' : ':'}${reference}`
  return registry === undefined ? end : `${registry}/${end}`
}

function decodeText(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

async function tracePushed(host: string, name: string, platform: string, sources: TraceSources): Promise<TraceReport> {
  const { pushed, pastChanges } = sources
  const { repository, reference } = splitName(name, name)
  const record = pushed?.repositories.get(repository)
  const known = reference.kind === 'tag' ? record?.tags.get(reference.tag) : undefined
  const root = findRoot(reference, known)
  const trace =
    pushed && root
      ? await traceContent(root, {
          blobs: pushed.blobs,
          record,
          identity: undefined,
          others: [],
          downloads: [],
          pastChanges,
          platform,
        })
      : undefined
  const isHeld =
    trace?.content.some(({ isNeeded }) => isNeeded) &&
    trace.content.every(({ isNeeded, state }) => !isNeeded || state === 'held')
  const why = !pushed
    ? 'The registry is switched off ("registry.enabled" in mirror.yaml).'
    : root === undefined
      ? `Nobody has pushed ${name} to the registry of this mirror.`
      : trace!.lacksPlatform
        ? `The index has no manifest for ${platform}.`
        : isHeld
          ? 'It was pushed to the registry of this mirror, which asks no upstream.'
          : 'A part of it is missing in the registry. Push the image again.'
  return {
    at: new Date(sources.now()).toISOString(),
    listener: 'registry',
    image: `${host}/${formatName(repository, reference)}`,
    registry: host,
    repository,
    platform,
    ...(reference.kind === 'tag' && {
      tag: { name: reference.tag, ...(known && { digest: known.digest, cachedAt: toIso(known.updatedAt) }) },
    }),
    ...(root && { digest: root }),
    content: trace?.content ?? [],
    requests: [],
    next: {
      result: isHeld && !trace?.lacksPlatform ? 'hit' : 'fails',
      why: [why],
      upstreamRequests: 0,
      hubPulls: 0,
      bytes: 0,
    },
  }
}

async function traceCached(image: string, platform: string, sources: TraceSources): Promise<TraceReport> {
  const { host, repository, reference } = await parseCachedName(image, sources)
  const name = `${host}/${formatName(repository, reference)}`
  const view = await sources.cache.inspect({ registry: host, name: repository, byNamespace: true })
  const now = sources.now()
  const base = {
    at: toIso(now),
    listener: 'cache' as const,
    image: name,
    registry: host,
    repository,
    platform,
    requests: [],
  }
  if (!view) {
    const why = [
      `${host} is not mirrored, so the mirror answers 404, and a client with a fallback asks ${host} itself.`,
      `To mirror it, add "${formatUpstreamSetting(host)}" to mirror.yaml.`,
    ]
    const known = reference.kind === 'digest' ? { digest: reference.digest } : { tag: { name: reference.tag } }
    return { ...base, ...known, content: [], next: { result: 'fails', why, upstreamRequests: 0, hubPulls: 0 } }
  }
  const { record, identity } = view
  const known = reference.kind === 'tag' ? record?.tags.get(reference.tag) : undefined
  const root = findRoot(reference, known)
  const others = record === undefined && root === undefined ? [] : sources.store.metadata.all()
  const downloads = sources.cache.listDownloads()
  const { blobs } = sources.store
  const trace = root && (await traceContent(root, { ...sources, blobs, record, identity, others, downloads, platform }))
  const isTagValid = known !== undefined && isValidFor(known, identity)
  const tag = reference.kind === 'tag' ? describeTag(reference.tag, known, view, sources) : undefined
  const removal =
    tag && !known ? sources.pastChanges.findRemoval(toTagKey({ host, name: view.name }, tag.name)) : undefined
  return {
    ...base,
    upstream: { ...sources.describeUpstream(host, identity === 'anonymous'), state: view.upstream.health().state },
    ...(tag && { tag }),
    ...(root && { digest: root }),
    content: trace?.content ?? [],
    next: planPull({
      name,
      host,
      platform,
      view,
      reference,
      tag: known && { isValid: isTagValid, checkedAt: known.updatedAt },
      removal,
      trace,
      now,
    }),
  }
}

function describeTag(
  name: string,
  known: Tag | undefined,
  view: RepositoryView,
  { pastChanges, now }: Pick<TraceSources, 'pastChanges' | 'now'>,
): NonNullable<TraceReport['tag']> {
  if (!known) return { name }
  const change = pastChanges.findTagChange(toTagKey({ host: view.upstream.host, name: view.name }, name))
  const { freshFor, newer } = view.describeCheck(name)
  return {
    name,
    digest: known.digest,
    ...(change && { cachedAt: toIso(change.at) }),
    checkedAt: toIso(known.updatedAt),
    ...(freshFor > 0 && Number.isFinite(freshFor) && { freshUntil: toIso(now() + freshFor) }),
    ...(change?.from && { movedFrom: { digest: change.from, at: toIso(change.at) } }),
    ...(newer && { newer: { digest: newer.digest, at: toIso(newer.at) } }),
  }
}

/** Returns the digest of the root manifest, if it is known. */
function findRoot(reference: Reference, known: Tag | undefined): Digest | undefined {
  return reference.kind === 'digest' ? reference.digest : known?.digest
}

async function parseCachedName(image: string, sources: TraceSources) {
  // A pattern would be compared with each image.
  if (image.length > maxImageNameLength || /[*?]/.test(image))
    throw createNameError(image, 'it is not the name of an image')
  const { isCacheAddress: isOwnAddress, defaultUpstream } = sources.naming
  const isShortDigest = /sha(?:256|512):[0-9a-f]*…?$/.test(image)
  const images = isShortDigest ? await sources.listImages() : []
  const [parsed] = parseUserNames([image], { isOwnAddress, defaultUpstream, images })
  let { name } = parsed!
  if (/^sha(?:256|512):/.test(name)) {
    const found = images.find(({ digest }) => digest === name)?.name ?? findRepository(name as Digest, sources.store)
    if (found === undefined)
      throw createNameError(
        image,
        'no cached manifest has this digest; with REPOSITORY@DIGEST it names one that is not cached',
      )
    name = `${found.replace(/(?::[^/:@]*|@.*)$/, '')}@${name}`
  }
  const slash = name.indexOf('/')
  const host = slash === -1 ? undefined : parseRegistryHost(name.slice(0, slash))
  if (host === undefined) throw createNameError(image, 'it is not the name of an image')
  return { host, ...splitName(name.slice(slash + 1), image) }
}

/** Finds the name of a repository with a manifest of this digest, which may be one of several platforms of an image. */
function findRepository(digest: Digest, { metadata }: TraceSources['store']): string | undefined {
  for (const { host, name, manifests } of metadata.all()) if (manifests.has(digest)) return `${host}/${name}`
  return undefined
}

/** Splits a name without a registry. Throws an OciError 400. */
function splitName(name: string, given: string): { repository: string; reference: Reference } {
  const [, repository = '', digest, tag = 'latest'] = /^([^@:]*)(?:(?::[^@]*)?@(.*)|:(.*))?$/.exec(name) ?? []
  const reference = parseReference(digest ?? tag)
  if (!isRepositoryName(repository) || !reference) throw createNameError(given, 'it is not the name of an image')
  return { repository, reference }
}

function formatName(repository: string, reference: Reference): string {
  return reference.kind === 'tag' ? `${repository}:${reference.tag}` : `${repository}@${reference.digest}`
}

function createNameError(image: string, why: string): OciError {
  return new OciError('NAME_INVALID', 400, `${JSON.stringify(image.slice(0, 200))} cannot be traced: ${why}.`)
}

const architectures: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386', ppc64: 'ppc64le' }

function parsePlatform(platform: string | undefined): string {
  if (platform === undefined || platform === '') return `linux/${architectures[process.arch] ?? process.arch}`
  if (/^[a-z0-9]{1,20}\/[a-z0-9_]{1,20}(?:\/[a-z0-9.]{1,20})?$/.test(platform)) return platform
  throw new OciError('UNKNOWN', 400, '"platform" must look like linux/amd64 or linux/arm/v7.')
}

function toIso(milliseconds: number): string {
  return new Date(milliseconds).toISOString()
}
