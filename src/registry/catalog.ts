import { anonymousIdentity, type RepositoryRecord } from '../store/records.ts'
import { isGoodFor } from './word.ts'

/**
 * The names of the repositories of which something is cached that this caller may be served, with the registry in each. Who the
 * caller is for a registry is asked once, and only where something is not for everybody.
 */
export async function visibleNames(
  records: Iterable<RepositoryRecord>,
  identityFor: (record: RepositoryRecord) => Promise<string>,
): Promise<string[]> {
  const identities = new Map<string, Promise<string>>()
  const identityAt = (record: RepositoryRecord) => {
    const known = identities.get(record.host) ?? identityFor(record)
    identities.set(record.host, known)
    return known
  }
  const isVisible = async (record: RepositoryRecord) => {
    const manifests = [...record.manifests.values()]
    if (manifests.length === 0) return false
    if (manifests.some((manifest) => isGoodFor(manifest, anonymousIdentity))) return true
    const identity = await identityAt(record)
    return manifests.some((manifest) => isGoodFor(manifest, identity))
  }
  const shown = await Promise.all(
    [...records].map(async (record) => ((await isVisible(record)) ? `${record.host}/${record.name}` : undefined)),
  )
  return shown.filter((name) => name !== undefined).toSorted()
}
