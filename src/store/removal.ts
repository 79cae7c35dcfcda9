import { parseDigest, type Digest } from '../oci/digest.ts'
import { EvictionPlanner, type EvictionPlan } from './eviction-plan.ts'
import { surveyHoldings, type Holding } from './holdings.ts'
import { imageName } from '../cache/images.ts'
import type { RepositoryRecord } from './records.ts'

export interface RemovalRequest {
  /** Images as they are listed, repositories with their registry, or digests. */
  readonly names: readonly string[]
  readonly records: Iterable<RepositoryRecord>
  readonly sizes: ReadonlyMap<Digest, number>
  readonly isInUse: (digest: Digest) => boolean
}

export interface RemovalPlan extends EvictionPlan {
  /** Names that matched nothing. */
  readonly unknown: string[]
}

/** What goes when a user names it, in small steps. An image goes with its last tag; a blob in use stays on the disk for now. */
export function* planRemoval(request: RemovalRequest): Generator<undefined, RemovalPlan> {
  const { sizes, isInUse } = request
  const holdings = yield* surveyHoldings(request.records)
  const planner = new EvictionPlanner(holdings, sizes, isInUse)
  const names = new Set(request.names)
  const matched = new Set<string>()
  const isNamed = (name: string) => names.has(name) && matched.add(name)

  for (const holding of holdings.all) {
    const isWhole = wholeNames(holding).filter(isNamed).length > 0
    const tags = holding.tags.filter((tag) => isNamed(imageName(holding.record, { tag })))
    if (isWhole) planner.forget({ holding, tags: holding.tags, whole: true })
    else if (tags.length > 0) planner.forget({ holding, tags, whole: tags.length === holding.tags.length })
  }
  for (const name of names) {
    const digest = matched.has(name) ? undefined : parseDigest(name)
    if (digest === undefined || !sizes.has(digest)) continue
    matched.add(name)
    planner.drop(digest)
  }
  return { ...planner.plan(), unknown: request.names.filter((name) => !matched.has(name)) }
}

/** The names that mean all of a holding. */
function wholeNames({ record, digest }: Holding): string[] {
  return [`${record.host}/${record.name}`, imageName(record, { digest }), digest]
}
