import { usesRanges } from '../../cache/download/download.ts'
import type { RepositoryView } from '../../cache/pull-through.ts'
import { mayServeStale } from '../../cache/stale.ts'
import { isValidFor } from '../../cache/grants.ts'
import type { NewerDigest } from '../../cache/tags.ts'
import { formatBytes, formatDuration } from '../../lib/units.ts'
import type { Removal } from '../../metadata/past-changes.ts'
import { type Digest, formatReference, type Reference } from '../../oci/reference.ts'
import type { UpstreamHealth } from '../../upstream/upstream.ts'
import type { ContentTrace } from './content.ts'
import type { TracedContent, TraceReport } from './report.ts'

interface PullSituation {
  /** Names the image. */
  readonly name: string
  readonly host: string
  readonly platform: string
  readonly view: RepositoryView
  readonly reference: Reference
  /** Describes the recorded tag; undefined for a digest, and for a tag that is not recorded. */
  readonly tag: { readonly isValid: boolean; readonly checkedAt: number } | undefined
  /** Describes the removal of a tag that is not recorded. */
  readonly removal: Removal | undefined
  /** Is undefined while the root manifest is not known. */
  readonly trace: ContentTrace | undefined
  /** Wall clock ms. */
  readonly now: number
}

/** Counts what a pull would cost. */
interface Costs {
  /** Counts the requests without which the pull fails. */
  required: number
  /** Counts the HEAD requests that only confirm a tag. */
  optional: number
  manifestGets: number
  bytes: number
}

/**
 * Tells what a pull would do now, by the rules of `PullThrough`: a client gets the tag, the manifest of its platform, the config and the
 * layers. Clients that send a HEAD for a tag before its GET cost one request more, if the tag is not cached.
 */
export function planPull(situation: PullSituation): TraceReport['next'] {
  const { trace, reference, host, platform, view } = situation
  const needed = trace?.content.filter(({ isNeeded }) => isNeeded) ?? []
  const [root] = needed
  const costs: Costs = { required: 0, optional: 0, manifestGets: 0, bytes: 0 }
  const why: string[] = []
  // A tag whose manifest is not recorded counts as unknown, even if another repository has the bytes.
  const isRootHeld = root?.state === 'held' && view.record?.manifests.has(root.digest as Digest) === true
  if (reference.kind === 'tag') planTag(situation, isRootHeld, costs, why)
  else if (root?.state === 'held' && root.reason !== undefined) costs.required += 1
  // The GET of a tag brings its manifest.
  const isRootFetched = costs.manifestGets > 0
  for (const one of isRootFetched ? needed.slice(1) : needed) addContent(one, situation, costs)
  if (isRootFetched) costs.bytes += root?.size ?? 0
  const isComplete = trace?.isComplete === true
  const newer = isRootHeld ? findNewer(situation) : undefined
  if (newer && costs.optional > 0) return planNewer(situation, newer)
  if (newer) why.push(`${describeNewer(newer, situation)}, which a pull fetches when it asks about the tag again.`)
  const counts = {
    upstreamRequests: costs.required + costs.optional,
    ...countHubPulls(situation, costs.manifestGets > 0),
    ...(isComplete && { bytes: costs.bytes }),
  }
  const missing = needed.filter(({ state }) => state === 'missing')
  const arriving = needed.filter(({ state }) => state === 'arriving')
  const parts = describeParts(needed, situation)
  const problem = costs.required > 0 ? findProblem(situation, counts.hubPulls) : undefined
  if (problem !== undefined)
    return { ...counts, result: 'fails', why: [problem, ...parts], upstreamRequests: 0, hubPulls: 0 }
  if (trace?.lacksPlatform) {
    const other = `The index has no manifest for ${platform}, so a client of this platform refuses the image.`
    return { ...counts, result: 'fails', why: [other, ...why] }
  }
  const joined = describeArriving(arriving.length, needed.length)
  if (isComplete && missing.length === 0 && !isRootFetched) {
    if (arriving.length > 0) return { ...counts, result: 'partly', why: [...joined, ...why, ...parts] }
    const state = `All ${needed.length} parts${root?.kind === 'index' ? ` for ${platform}` : ''} are held: ${formatBytes(sumSizes(needed))}.`
    return { ...counts, result: 'hit', why: [state, ...why, ...parts] }
  }
  if (missing.length === needed.length) return { ...counts, result: 'miss', why: [...why, ...parts] }
  const known = isComplete ? '' : ' known'
  const rest = isComplete ? `: ${formatBytes(costs.bytes)}` : ', and a manifest among them tells what else'
  const state = `${countParts(missing.length)} of ${needed.length}${known} must be fetched from ${host}${rest}.`
  return { ...counts, result: 'partly', why: [state, ...joined, ...why, ...parts] }
}

function describeArriving(count: number, total: number): string[] {
  if (count === 0) return []
  const [arrive, downloads] = count === 1 ? ['arrives', 'download'] : ['arrive', 'downloads']
  return [`${countParts(count)} of ${total} ${arrive} now, and a client joins the ${downloads}.`]
}

/** Counts the pulls for Docker Hub's quota, where the requests go to a server that has it. */
function countHubPulls({ view }: PullSituation, isManifestFetched: boolean) {
  const countsPulls = view.upstream.health().countsPulls === true
  return { hubPulls: countsPulls && isManifestFetched ? 1 : 0, ...(countsPulls && { countsPulls }) }
}

/** Returns the digest that the upstream has named for the tag, and that is not fetched. */
function findNewer({ view, reference, tag }: PullSituation): NewerDigest | undefined {
  return tag?.isValid && reference.kind === 'tag' ? view.describeCheck(reference.tag).newer : undefined
}

/** Plans the pull of a tag whose newer manifest is not here, so that nobody knows what it names. */
function planNewer(situation: PullSituation, newer: NewerDigest): TraceReport['next'] {
  const why = `${describeNewer(newer, situation)}: one HEAD request asks about it, and one GET request fetches its manifest.`
  return { result: 'partly', why: [why], upstreamRequests: 2, ...countHubPulls(situation, true) }
}

function describeNewer({ digest, at }: NewerDigest, { host, now }: PullSituation): string {
  return `${host} named another digest for the tag ${formatAge(now - at)} (${digest})`
}

/** Adds what it costs to resolve the tag. */
function planTag(
  { tag, view, host, reference, removal, now, name }: PullSituation,
  isRootHeld: boolean,
  costs: Costs,
  why: string[],
): void {
  const tagName = formatReference(reference)
  if (!tag || (!isRootHeld && tag)) {
    costs.required += 1
    costs.manifestGets += 1
    if (!tag) why.push(describeUnknownTag(name, host, removal, now))
    return
  }
  if (!tag.isValid) {
    costs.required += 1
    why.push(`Another credential fetched the tag, so one HEAD request asks ${host} whether this one may have it.`)
    return
  }
  const { freshFor, failure } = view.describeCheck(tagName)
  const isAffected = failure !== undefined && isValidFor(failure, view.identity)
  if (freshFor === Infinity) why.push('The mirror is offline, so the tag is served as it is.')
  else if (freshFor > 0 && isAffected)
    why.push(
      `${host} could not confirm the tag, so it is served as it is, and ${host} is not asked for ${formatDuration(freshFor)}: ` +
        `${cleanText(failure.reason.text)}.`,
    )
  else if (freshFor > 0) why.push(`The tag is fresh for ${formatDuration(freshFor)}, so ${host} is not asked about it.`)
  else if (mayBeAsked(view)) {
    costs.optional += 1
    why.push(
      `${host} confirmed the tag ${formatAge(now - tag.checkedAt)}, so one HEAD request asks whether it has moved.`,
    )
  } else if (mayServeStale(view.policy.stale, 'unavailable'))
    why.push(`${host} does not answer, so the tag is served as it is.`)
  else costs.required += 1
}

function describeUnknownTag(name: string, host: string, removal: Removal | undefined, now: number): string {
  if (!removal) return `The mirror does not have the tag, so one GET request asks ${host} for ${name}.`
  const age = formatAge(now - removal.at)
  const how = removal.why === 'removed' ? `A command removed it ${age}` : `It was evicted ${age} to keep a limit`
  return `${how}, so ${host} is asked for it.`
}

/** Adds what it costs to fetch a manifest or blob. Content that is held costs nothing, because its manifest grants it. */
function addContent(one: TracedContent, { view: { ranges } }: PullSituation, costs: Costs): void {
  if (one.state !== 'missing') return
  const isManifest = one.kind === 'index' || one.kind === 'manifest'
  costs.required += !isManifest && usesRanges(one.size, ranges) ? Math.ceil(one.size / ranges.bytes) : 1
  costs.bytes += one.size ?? 0
  if (isManifest) costs.manifestGets += 1
}

/** Returns why a request that a pull needs would fail, if that is known now. */
function findProblem({ view, host, reference, now }: PullSituation, hubPulls: number): string | undefined {
  const { upstream, policy } = view
  if (policy.offline) return `The mirror is offline, and a part is missing: ${host} is not asked.`
  const refusal = view.findRefusal(`manifests/${formatReference(reference)}`)
  if (refusal)
    return `${host} has just ${refusal.failure === 'absent' ? 'answered' : 'refused it'}: ${cleanText(refusal.message)}`
  const health = upstream.health()
  if (health.state === 'open')
    return `${host} does not answer, and the mirror waits before it asks again: ${describeFailure(health)}`
  const { rateLimit } = health
  if (hubPulls === 0 || rateLimit === undefined || 'unlimited' in rateLimit) return undefined
  const { limit, remaining, windowSeconds, at, resetsAt = at + windowSeconds * 1000 } = rateLimit
  if (remaining === 0 && now < resetsAt)
    return `The quota of ${host} is used up: ${limit} pulls in ${formatDuration(windowSeconds * 1000)}.`
  return undefined
}

function mayBeAsked({ upstream }: RepositoryView): boolean {
  return upstream.health().state !== 'open'
}

function describeFailure({ lastError }: UpstreamHealth): string {
  return lastError ? cleanText(lastError.message) : 'no reason is known.'
}

/** Explains what is missing, one sentence for each reason; and a root by digest that needs a grant first. */
function describeParts(needed: readonly TracedContent[], { now, host, reference }: PullSituation): string[] {
  const groups = new Map<string, TracedContent[]>()
  for (const one of needed) {
    const isObstacle =
      one.state === 'missing' ||
      (one.state === 'held' && one.reason && one.parent === undefined && reference.kind === 'digest')
    const reason = one.reason ?? 'unknown'
    if (isObstacle) groups.set(reason, [...(groups.get(reason) ?? []), one])
  }
  return Array.from(groups, ([reason, parts]) => describeGroup(reason, parts, now, host))
}

function describeGroup(reason: string, parts: readonly TracedContent[], now: number, host: string): string {
  const what = `${countParts(parts.length)} (${listKinds(parts)})`
  const [verb, has] = parts.length === 1 ? ['was', 'has'] : ['were', 'have']
  switch (reason) {
    case 'evicted': {
      const last = Math.max(...parts.map(({ evictedAt }) => (evictedAt === undefined ? 0 : Date.parse(evictedAt))))
      return `${what} ${verb} evicted ${formatAge(now - last)} to keep a limit of the cache.`
    }
    case 'removed':
      return `${what} ${verb} removed by a command.`
    case 'damaged':
      return `${what} ${verb} damaged on the disk.`
    case 'first':
      return `${what} ${verb} never in the cache.`
    case 'identity':
      return `${what} ${has} no grant for the credential of this machine: one HEAD request asks ${host} for it.`
    case 'not granted':
      return `${what} ${verb} fetched for another repository: one HEAD request asks ${host} whether this one has it.`
    default:
      return `${what} ${verb} lost from the disk.`
  }
}

function listKinds(parts: readonly TracedContent[]): string {
  return [...new Set(parts.map(({ kind }) => kind))].join(', ')
}

function countParts(count: number): string {
  return count === 1 ? '1 part' : `${count} parts`
}

function sumSizes(parts: readonly TracedContent[]): number {
  return parts.reduce((sum, { size }) => sum + (size ?? 0), 0)
}

function formatAge(milliseconds: number): string {
  return milliseconds < 1000 ? 'just now' : `${formatDuration(milliseconds)} ago`
}

/** Limits a text of an upstream and replaces control characters. */
function cleanText(text: string): string {
  return text.slice(0, 300).replaceAll(/\p{Cc}/gu, '?')
}
