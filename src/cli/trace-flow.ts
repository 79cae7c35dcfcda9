import { createClientForMirror } from '../admin/access.ts'
import type { AdminClient } from '../admin/client.ts'
import type { RequestReport, TraceReport } from '../admin/activity.ts'
import { type FoundMirror, findRunningMirror } from '../admin/find-mirror.ts'
import { describeMachine, getAdapter } from '../clients/adapters.ts'
import { findMirrorAddress } from '../clients/find-mirror.ts'
import { type AskedImage, type ClientRequest, listClientRequests } from '../clients/requests.ts'
import { findStaleClients } from '../clients/stale-clients.ts'
import { readLogs } from '../daemon/read-logs.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { parseObject } from '../lib/json.ts'
import { type CommandEnvironment, quoteShellWord } from '../lib/process.ts'
import { systemClock } from '../lib/time.ts'
import { looksLikeRequestId } from '../server/request-id.ts'
import { maxRecentRequests, nameOutcome } from '../stats/requests.ts'

/** Limits the lines of the log that are searched. */
const maxLogLines = 20_000
/** Limits the requests in a trace. */
const maxRequests = 100

/** Holds the result of `mirror trace --json`. */
export interface FullTrace extends TraceReport {
  /** Describes what each client of this machine asks. */
  readonly clients: readonly ClientRequest[]
  /** Explains why the clients are not known: a record of their configuration is damaged, for example. */
  readonly clientsError?: string
  /** Holds the request that the user named by its id. */
  readonly request?: RequestReport
}

/** Holds the result for the id of a request that concerns no image, such as a list of tags. */
interface RequestTrace {
  readonly request: RequestReport
}

export interface TraceOptions {
  /** Names an image, or a request by its id. */
  readonly name: string
  readonly platform: string | undefined
  /** Limits the clients to one. */
  readonly client: string | undefined
}

/** Reads the trace of an image from the running mirror, the clients and the log; undefined when no mirror runs. Throws a MirrorError. */
export async function readTrace(
  surroundings: CommandEnvironment,
  { name, platform, client }: TraceOptions,
): Promise<FullTrace | RequestTrace | undefined> {
  if (client !== undefined) await getAdapter(client, `mirror trace ${quoteShellWord(name)} --client CLIENT`)
  const found = await findRunningMirror(surroundings)
  if (found === undefined) return undefined
  const api = createClientForMirror(found)
  const logged = await readLoggedRequests(found)
  const { request, image } = await resolveName(name, found, logged)
  if (image === undefined) return { request: request! }
  const report = await askForTrace(api, image, platform)
  const requests = mergeRequests(report.requests, selectRequests(logged, report)).slice(0, maxRequests)
  const clients = await readClients(surroundings, report, found, client)
  return { ...report, requests, ...clients, ...(request && { request }) }
}

/** Finds what a user names: a request with its image, if it concerns one, or an image. Throws a MirrorError for the id of no known request. */
async function resolveName(
  name: string,
  found: FoundMirror,
  logged: readonly RequestReport[],
): Promise<{ readonly request?: RequestReport; readonly image: string | undefined }> {
  if (!looksLikeRequestId(name)) return { image: name }
  const api = createClientForMirror(found)
  const all = mergeRequests(await api.listRequests({ limit: maxRecentRequests }), logged)
  const request = all.find(({ id }) => id === name)
  if (request) return { request, image: findImageOf(request, found, all) }
  // An image may have such a name, too.
  if ((await api.trace({ image: name })).digest !== undefined) return { image: name }
  throw createUnknownIdError(name)
}

function createUnknownIdError(name: string): MirrorError {
  const count = maxRecentRequests.toLocaleString('en')
  return new MirrorError(
    `${name} looks like the id of a request, but it is none of the last ${count} requests, which the mirror remembers, or of those in its log.`,
    {
      exit: exitCode.usage,
      hints: [
        'mirror logs   (the id is at the end of a line, and "id" with --json)',
        `mirror trace docker.io/library/${name}   (if it is the name of an image)`,
      ],
    },
  )
}

/** Opens a function that reads the current trace of an image again, without clients and log. */
export async function openTraceReader(
  surroundings: CommandEnvironment,
  { name, platform }: Pick<TraceOptions, 'name' | 'platform'>,
): Promise<(() => Promise<TraceReport>) | undefined> {
  const found = await findRunningMirror(surroundings)
  if (found === undefined) return undefined
  const api = createClientForMirror(found)
  const { image } = await resolveName(name, found, await readLoggedRequests(found))
  if (image === undefined)
    throw new MirrorError(`The request ${name} concerns no image, so there is nothing to follow.`, {
      exit: exitCode.usage,
      hints: [`mirror trace ${name}   (shows the request)`],
    })
  return () => askForTrace(api, image, platform)
}

/** Gets the trace of an image. Throws a MirrorError with a next step for a name that is none. */
async function askForTrace(api: AdminClient, image: string, platform: string | undefined): Promise<TraceReport> {
  try {
    return await api.trace({ image, ...(platform !== undefined && { platform }) })
  } catch (error) {
    if (!(error instanceof MirrorError) || error.exit !== exitCode.usage || error.hints.length > 0) throw error
    const hints = ['mirror trace --help   (examples)', 'mirror cache ls   (the cached images)']
    throw new MirrorError(error.message, { exit: error.exit, hints, cause: error })
  }
}

/** Limits the time between the manifest of a pull or push and its blobs, ms. */
const maxPullMs = 600_000

/**
 * Returns the image of a request; undefined when it concerns none. For a manifest by digest or a blob, this is the tag of its repository
 * that the same client has asked for before, if there is one. A push ends with its manifest, so for its parts this is the next tag that
 * the client has pushed.
 */
function findImageOf(
  request: RequestReport,
  { running }: FoundMirror,
  requests: readonly RequestReport[],
): string | undefined {
  const { kind, repository, listener, client, at, method, reference: own } = request
  if (repository === undefined || kind === undefined || !imageKinds.has(kind)) return undefined
  const elapsed = (one: RequestReport) => Date.parse(one.at) - Date.parse(at)
  const others = requests.filter(
    (one) =>
      one.kind === 'manifest' &&
      one.repository === repository &&
      one.listener === listener &&
      one.client === client &&
      Math.abs(elapsed(one)) < maxPullMs,
  )
  const before = others.filter((one) => elapsed(one) <= 0)
  // The list begins with the newest request.
  const pushed = others.findLast((one) => elapsed(one) >= 0 && one.method === 'PUT' && isByTag(one))
  const isPush = listener === 'registry' && method !== 'GET'
  const manifest =
    kind === 'manifest' && isByTag(request)
      ? request
      : ((isPush ? pushed : undefined) ?? before.find(isByTag) ?? before[0])
  const reference = manifest?.reference ?? (kind === 'manifest' || kind === 'referrers' ? own : undefined)
  if (reference === undefined) return undefined
  const [registry] = listener === 'registry' ? running.endpoints.registry : []
  const host = registry === undefined ? '' : `${new URL(registry).host}/`
  return `${host}${repository}${reference.includes(':') ? '@' : ':'}${reference}`
}

/** Lists the kinds of requests that concern an image. */
const imageKinds: ReadonlySet<string> = new Set(['manifest', 'blob', 'referrers', 'uploads', 'upload'])

function isByTag({ reference }: RequestReport): boolean {
  return reference !== undefined && !reference.includes(':')
}

/** Reads the requests in the log, the newest first; none where there is no log that this user can read. */
async function readLoggedRequests({ running, user }: FoundMirror): Promise<RequestReport[]> {
  const { logFile } = running
  if (user !== undefined || running.container !== undefined || logFile === undefined) return []
  const requests: RequestReport[] = []
  const write = (line: string) => {
    const request = line.includes('"msg":"request"') ? parseRequest(line) : undefined
    if (request) requests.push(request)
  }
  const { signal } = new AbortController()
  try {
    await readLogs({ logFile, lines: maxLogLines, follow: false, signal, clock: systemClock, write })
  } catch (error) {
    if (getErrno(error) === undefined) throw error
  }
  return requests.toReversed()
}

/** Reads a line of the log. Its fields are those of a report, except the time. */
function parseRequest(line: string): RequestReport | undefined {
  const { id, time, method, status, probe, ...fields } = parseObject(line) ?? {}
  if (typeof id !== 'string' || typeof time !== 'string' || typeof method !== 'string' || typeof status !== 'number')
    return undefined
  const { listener, kind, repository, reference, cache, reason, evictedAt, bytes, ms, client, agent, error, warning } =
    fields
  const texts = { kind, repository, reference, cache, reason, evictedAt, agent, error, warning }
  const known = Object.fromEntries(Object.entries(texts).filter(([, value]) => typeof value === 'string'))
  return {
    ...known,
    id,
    at: time,
    method,
    status,
    outcome: nameOutcome({ method, status, cache, probe }),
    listener: listener === 'registry' ? 'registry' : 'cache',
    bytes: typeof bytes === 'number' ? bytes : 0,
    ms: typeof ms === 'number' ? ms : 0,
    client: typeof client === 'string' ? client : '',
  }
}

/** Selects the logged requests for an image: its tag and its digests. */
function selectRequests(logged: readonly RequestReport[], report: TraceReport): RequestReport[] {
  const isPushed = report.listener === 'registry'
  const repository = isPushed ? report.repository : `${report.registry}/${report.repository}`
  const references = new Set([report.tag?.name, report.digest, ...report.content.map(({ digest }) => digest)])
  return logged.filter(
    (one) =>
      one.repository === repository && (one.listener === 'registry') === isPushed && references.has(one.reference),
  )
}

function mergeRequests(recent: readonly RequestReport[], logged: readonly RequestReport[]): RequestReport[] {
  const known = new Set(recent.map(({ id }) => id))
  return [...recent, ...logged.filter(({ id }) => !known.has(id))].toSorted((one, other) =>
    other.at.localeCompare(one.at),
  )
}

/** Reads what the clients ask. The rest of the trace is right without them, so their failure is a part of the result. */
async function readClients(
  surroundings: CommandEnvironment,
  report: TraceReport,
  found: FoundMirror,
  client: string | undefined,
): Promise<Pick<FullTrace, 'clients' | 'clientsError'>> {
  // The configuration of another user's clients is not this user's.
  if (found.user !== undefined) return { clients: [] }
  try {
    return { clients: await listRequests(surroundings, report, client) }
  } catch (error) {
    if (error instanceof MirrorError) return { clients: [], clientsError: error.message }
    throw error
  }
}

async function listRequests(
  surroundings: CommandEnvironment,
  report: TraceReport,
  client: string | undefined,
): Promise<ClientRequest[]> {
  const { registry, repository, tag, digest } = report
  const image: AskedImage = {
    registry,
    repository,
    reference: tag?.name ?? digest ?? 'latest',
    isPushed: report.listener === 'registry',
  }
  const machine = await describeMachine(surroundings, undefined)
  const { registries } = await findMirrorAddress(surroundings, { url: undefined, caFile: undefined })
  const stale = await findStaleClients(surroundings)
  const requests = await listClientRequests({ machine, image, stale, registries, client })
  // No configuration leads a client to the mirror for a registry that is not mirrored.
  const isMirrored = report.listener === 'registry' || report.upstream !== undefined
  return isMirrored ? requests : requests.map(withoutFix)
}

function withoutFix({ fix: _fix, ...request }: ClientRequest): ClientRequest {
  return request
}
