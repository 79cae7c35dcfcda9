import type { Operation } from './operations.ts'
import { type Repositories, type Repository, weights } from './repositories.ts'

interface Drops {
  readonly host: string
  readonly name: string
  readonly operations: Operation[]
}

/**
 * Plans the removal of the least recently used entries until the repositories weigh at most `keptShare` of `maxWeight`. A repository that
 * alone weighs more than that loses entries of its own only. Upstreams are asked for all of them again when needed.
 */
export function planDrops(
  repositories: Repositories,
  changed: Repository | undefined,
  maxWeight: number,
  keptShare: number,
): Drops[] {
  const isAlone = changed !== undefined && changed.weight > maxWeight * keptShare
  const parts = [...(isAlone ? [changed] : repositories.all())].flatMap((repository) => [...listParts(repository)])
  let excess = isAlone ? changed.weight - maxWeight * keptShare ** 2 : repositories.weight - maxWeight * keptShare
  const drops = new Map<Repository, Drops>()
  for (const { repository, weight, operation } of parts.toSorted((a, b) => a.usedAt - b.usedAt)) {
    if (excess <= 0) break
    const { host, name } = repository
    const planned = drops.get(repository) ?? { host, name, operations: [] }
    drops.set(repository, planned)
    planned.operations.push(operation)
    excess -= weight
  }
  return [...drops.values()]
}

interface Part {
  readonly repository: Repository
  readonly usedAt: number
  readonly weight: number
  readonly operation: Operation
}

function* listParts(repository: Repository): Generator<Part, void> {
  const { tags, manifests, blobs, referrers } = repository
  for (const [digest, { usedAt }] of manifests) {
    const weight = weights.manifest + repository.getLinkWeight(digest)
    yield { repository, usedAt, weight, operation: { op: 'drop-manifest', digest } }
  }
  for (const [tag, { digest }] of tags) {
    const usedAt = manifests.get(digest)?.usedAt ?? 0
    yield { repository, usedAt, weight: weights.tag, operation: { op: 'untag', tag } }
  }
  for (const [digest, { usedAt }] of blobs)
    yield { repository, usedAt, weight: weights.blob, operation: { op: 'drop-blob', digest } }
  for (const page of referrers.values())
    yield {
      repository,
      usedAt: page.usedAt,
      weight: weights.referrers,
      operation: { ...page, op: 'drop-referrers' },
    }
}
