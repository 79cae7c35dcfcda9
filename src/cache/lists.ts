import type { Clock } from '../lib/time.ts'
import type { Repository } from '../metadata/metadata.ts'
import { dropRepeatedPage, paginate, readTagsList } from '../oci/lists.ts'
import type { ListResponse, Provenance } from '../oci/registry.ts'
import type { Page } from '../oci/route.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { isValidFor, type RequestContext, toProvenance } from './grants.ts'
import { describeStale, maySubstitute, offlineReason, toStaleReason } from './stale.ts'
import type { TagPolicy } from './tags.ts'

/** Throws an OciError 400 for a malformed page. Upstreams disagree on how to refuse one, so the mirror does it for all of them. */
export function checkPage(page: Page): void {
  paginate([], page)
}

/** Lists the tags of a repository from its upstream; the recorded ones while the upstream fails. Throws an UpstreamError. */
export async function listTags(
  context: RequestContext,
  page: Page,
  { policy, clock }: { readonly policy: TagPolicy; readonly clock: Clock },
): Promise<ListResponse> {
  const { host, name, upstream, caller } = context
  try {
    const list = await upstream.tags(name, page.query, { access: caller.access })
    const bytes = await readTagsList(list.bytes, name).finally(list.release)
    if (!bytes) throw new UpstreamError('invalid', 502, `${host} answered with something that is not a list of tags.`)
    const next = dropRepeatedPage(page.query, list.next)
    return { contentType: 'application/json', bytes, next, provenance: toProvenance(host, 'passed') }
  } catch (error) {
    const known = await findKnownTags(context)
    if (known.length === 0 || !maySubstitute(error, policy)) throw error
    // Only the upstream can resolve a page that it has named by a token.
    if (!isPlainPage(page)) throw error
    const { entries, next } = paginate(known, page)
    // Offline, no credential helper may run.
    const reason = policy.offline
      ? offlineReason
      : toStaleReason(context, { error, identity: await context.identity() }, clock.wall())
    const warning = describeStale(reason, 'the cached list of tags', undefined, clock.wall())
    return toListAnswer({ name, tags: entries }, next, toProvenance(host, 'stale', {}, warning))
  }
}

/** Lists those of the repositories that the caller may read. `identityFor`: the caller's identity at a repository's registry. */
export async function listCatalog(
  repositories: Iterable<Repository>,
  page: Page,
  identityFor: (repository: Repository) => Promise<Identity>,
): Promise<ListResponse> {
  const { entries, next } = paginate(await findVisibleNames(repositories, identityFor), page)
  return toListAnswer({ repositories: entries }, next, {
    registry: undefined,
    outcome: 'passed',
    cacheStatus: 'mirror; hit',
  })
}

/** Finds the recorded tags that are valid for the caller, sorted. */
async function findKnownTags(context: RequestContext): Promise<string[]> {
  const tags = [...(context.record()?.tags ?? [])]
  const isPublic = tags.every(([, tag]) => isValidFor(tag, anonymousIdentity))
  const identity = isPublic ? anonymousIdentity : await context.identity()
  const usable = tags.filter(([, tag]) => isValidFor(tag, identity))
  return usable.map(([tag]) => tag).toSorted()
}

/** Reports whether the query names a page by the last entry before it, as the specification defines. */
function isPlainPage({ query }: Page): boolean {
  return [...new URLSearchParams(query).keys()].every((name) => name === 'n' || name === 'last')
}

/** Finds `<registry>/<name>` of each repository with a manifest for the caller. Resolves the identity once a registry, and only if needed. */
async function findVisibleNames(
  repositories: Iterable<Repository>,
  identityFor: (repository: Repository) => Promise<Identity>,
): Promise<string[]> {
  const identities = new Map<string, Promise<Identity>>()
  const getIdentity = (repository: Repository) => {
    const known = identities.get(repository.host) ?? identityFor(repository)
    identities.set(repository.host, known)
    return known
  }
  const isVisible = async (repository: Repository) => {
    if (repository.manifests.size === 0) return false
    return hasManifestFor(repository, anonymousIdentity) || hasManifestFor(repository, await getIdentity(repository))
  }
  const visible = await Promise.all(
    [...repositories].map(async (repository) =>
      (await isVisible(repository)) ? `${repository.host}/${repository.name}` : undefined,
    ),
  )
  return visible.filter((name) => name !== undefined).toSorted()
}

function hasManifestFor({ manifests }: Repository, identity: Identity): boolean {
  for (const manifest of manifests.values()) if (isValidFor(manifest, identity)) return true
  return false
}

function toListAnswer(value: unknown, next: string | undefined, provenance: Provenance): ListResponse {
  return { contentType: 'application/json', bytes: new TextEncoder().encode(JSON.stringify(value)), next, provenance }
}
