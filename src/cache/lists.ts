import { dropRepeatedPage, paginate, readTagsList } from '../oci/lists.ts'
import type { ListResponse, Provenance } from '../oci/registry.ts'
import type { Page } from '../oci/route.ts'
import { anonymousIdentity, type Identity } from '../oci/registry.ts'
import type { RepositoryRecord } from '../store/records.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import { isValidFor, type RequestContext, toProvenance } from './grants.ts'
import { maySubstitute, type TagPolicy } from './tags.ts'

/** Throws an OciError 400 for a malformed page. Upstreams disagree on how to refuse one, so the mirror does it for all of them. */
export function checkPage(page: Page): void {
  paginate([], page)
}

/** Lists the tags of a repository from its upstream; from the record while the upstream fails. Throws an UpstreamError. */
export async function listTags(context: RequestContext, page: Page, policy: TagPolicy): Promise<ListResponse> {
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
    return toListAnswer({ name, tags: entries }, next, toProvenance(host, 'stale'))
  }
}

/** Lists the repositories of `records` that the caller may read. `identityFor`: the caller's identity at a record's registry. */
export async function listCatalog(
  records: Iterable<RepositoryRecord>,
  page: Page,
  identityFor: (record: RepositoryRecord) => Promise<Identity>,
): Promise<ListResponse> {
  const { entries, next } = paginate(await findVisibleNames(records, identityFor), page)
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

/** Finds `<registry>/<name>` of each record with a manifest for the caller. Resolves the identity once a registry, and only if needed. */
async function findVisibleNames(
  records: Iterable<RepositoryRecord>,
  identityFor: (record: RepositoryRecord) => Promise<Identity>,
): Promise<string[]> {
  const identities = new Map<string, Promise<Identity>>()
  const getIdentity = (record: RepositoryRecord) => {
    const known = identities.get(record.host) ?? identityFor(record)
    identities.set(record.host, known)
    return known
  }
  const isVisible = async (record: RepositoryRecord) => {
    const manifests = [...record.manifests.values()]
    if (manifests.length === 0) return false
    if (manifests.some((manifest) => isValidFor(manifest, anonymousIdentity))) return true
    const identity = await getIdentity(record)
    return manifests.some((manifest) => isValidFor(manifest, identity))
  }
  const visible = await Promise.all(
    [...records].map(async (record) => ((await isVisible(record)) ? `${record.host}/${record.name}` : undefined)),
  )
  return visible.filter((name) => name !== undefined).toSorted()
}

function toListAnswer(value: unknown, next: string | undefined, provenance: Provenance): ListResponse {
  return { contentType: 'application/json', bytes: new TextEncoder().encode(JSON.stringify(value)), next, provenance }
}
