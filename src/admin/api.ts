import { createHmac, randomBytes } from 'node:crypto'
import type { DownloadReport } from '../oci/registry.ts'
import { getErrno } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import type { HistoryRange, HistoryReport } from '../stats/history.ts'
import type { RequestReport } from '../stats/requests.ts'
import type { Totals } from '../stats/stats.ts'
import type { UpstreamFailure } from '../upstream/upstream.ts'
import type { ClientsApi } from './clients.ts'
import type { FindingsApi } from './dashboard/findings.ts'
import type { TraceReport } from './trace/report.ts'

/**
 * Describes the admin operations of a mirror: the running server implements them all (daemon/start.ts), `AdminClient` sends
 * them over HTTP, and `cache` and `registry` of a stopped mirror work on its disk (local.ts).
 */
export interface AdminApi {
  getStatus(): Promise<StatusReport>
  /** Returns Prometheus text and its content type. */
  getMetrics(): Promise<{ readonly contentType: string; readonly text: string }>
  readonly cache: CacheApi
  /** Throws an OciError (404) from each operation while the registry is switched off. */
  readonly registry: RegistryApi
  /** Returns the traffic of a range that ends now. */
  getHistory(range: HistoryRange): Promise<HistoryReport>
  readonly clients: ClientsApi
  /** Lists the last requests to the cache and the registry, the newest first. */
  listRequests(request: RequestsRequest): Promise<RequestReport[]>
  /** Explains an image, and what a pull of it would do now. Changes nothing. Throws an OciError 400 for a bad name or platform. */
  trace(request: TraceRequest): Promise<TraceReport>
  /** Lists the downloads of blobs that are under way. */
  listDownloads(): Promise<DownloadReport[]>
  readonly doctor: FindingsApi
  /** Pauses the requests to upstreams until the server ends, or continues them; mirror.yaml stays as it is. */
  setOffline(request: { readonly offline: boolean }): Promise<OfflineReport>
  /** Offers an image that only this mirror has. */
  offerProbeImage(): Promise<ProbeImageOffer>
  /** Ends the offer. Throws an OciError (404) for an id that is not offered. */
  endProbeImage(id: string): Promise<ProbeImageReport>
  /** Asks the server to drain and end; returns before it does. */
  stop(): Promise<void>
}

/** Describes the operations on cached images. */
export interface CacheApi {
  list(): Promise<ImageReport[]>
  remove(request: RemoveRequest): Promise<RemovalReport>
  /** Asks the upstream about a tag now. Throws an OciError: 404 for an image that is not cached, 400 for one without a tag. */
  checkTag(request: CheckTagRequest): Promise<TagCheckReport>
  /** Evicts to the configured limits. */
  prune(request: PruneRequest): Promise<RemovalReport>
  /** Hashes every blob. Yields progress, the last one with `done`. */
  verify(request: VerifyRequest, signal: AbortSignal): AsyncIterable<VerifyProgress>
}

/** Describes the operations on pushed images. */
export interface RegistryApi {
  list(): Promise<PushedImageReport[]>
  /** Lists the repositories whose record is damaged. */
  listDamaged(): Promise<DamagedRepositoryReport[]>
  remove(request: RemoveRequest): Promise<RemovalReport>
  /** Removes content that no image needs. */
  gc(request: RegistryGcRequest): Promise<RemovalReport>
  /** Removes old tags with their images. */
  prune(request: RegistryPruneRequest): Promise<RemovalReport>
}

/** Status of a running mirror, the contract of `mirror status --json`. */
export interface StatusReport {
  version: string
  running: true
  runtime: 'process' | 'container'
  /** Names the remote Docker engine that the mirror runs on, as `ssh://me@there`; its addresses are that machine's. */
  engine?: string
  /** Holds the owner of the mirror when root asks under sudo; absent otherwise. */
  user?: string
  pid: number
  /** Holds the version of the asking command, when it differs from the mirror's. */
  cliVersion?: string
  /** Gives the time in ISO 8601. */
  startedAt: string
  uptimeSeconds: number
  /** Gives the start of the totals, which survive restarts (ISO 8601). */
  since: string
  endpoints: { cache: string[]; registry: string[]; admin: string[]; networks: Record<string, string> }
  /** Maps the names of Docker networks to their reports. */
  networks: Record<string, NetworkReport>
  /** Tells how stored blobs are sent: by sendfile, or through this process. */
  sendBlob: 'sendfile' | 'portable'
  /** Is absent in the report of a mirror of an older version. */
  offline?: OfflineReport
  cache: CacheCounters
  upstreams: Record<string, UpstreamReport>
  storage: {
    path: string
    bytes: number
    maxBytes: number
    blobs: number
    manifests: number
    pushedBytes: number
    freeBytes?: number
    minFree: number
  }
  registry: RegistryCounters
  /**
   * Holds the reasons why the mirror cannot fetch by its own fault, or why its registry serves no client; absent when there are
   * none.
   */
  troubles?: string[]
  /** Counts the requests by refused host header. */
  refusedHosts: Record<string, number>
  /** Counts the requests for registries that are not mirrored, by registry. */
  refusedRegistries: Record<string, number>
  images: ImageReport[]
}

/** Counts of pushed content; all 0 where no registry runs. */
interface RegistryCounters {
  repositories: number
  tags: number
  manifests: number
  bytes: number
  /** Counts the uploads in progress. */
  uploads: number
  /** Access of containers of Docker networks; absent where no registry runs. */
  networks?: 'read' | 'write'
  /** Holds the repositories whose record is damaged; absent where there are none. */
  damaged?: DamagedRepositoryReport[]
}

export interface DamagedRepositoryReport {
  /** Is absent where the record does not tell its name. */
  repository?: string
  /** Holds the path of the record, or of the copy of its damaged lines. */
  path: string
  /** Holds the path where an intact record belongs. */
  original: string
  reason: string
  /** Is false when nothing of the record could be read: the repository is unknown until the next push. */
  served: boolean
}

/** Totals of the cache; `hitRatio` is hits / (hits + misses). */
interface CacheCounters extends Totals {
  hitRatio: number
}

/** Tells whether upstreams are contacted. */
export interface OfflineReport {
  /** Is true while no upstream is contacted. */
  active: boolean
  /** Distinguishes `config`: as `cache.offline` in mirror.yaml says; and `session`: somebody decided otherwise for this process. */
  source: 'config' | 'session'
}

/** Describes the reachability of the mirror from the containers of a Docker network. */
export interface NetworkReport {
  /**
   * Distinguishes `waiting`: there is no address to listen on yet; and `failed`: the address cannot be listened on, and the mirror
   * tries again.
   */
  state: 'listening' | 'waiting' | 'failed'
  url?: string
  /** Holds the reason for `waiting` or `failed`. */
  reason?: string
}

/** Describes the pull quota of Docker Hub. */
export interface LimitedPullsReport {
  limit: number
  remaining: number
  windowSeconds: number
  /** Holds the address or account that the quota belongs to. */
  source?: string
  /** Gives the time of the response (ISO 8601). */
  at: string
  /** Gives the time at which pulls are possible again (ISO 8601); absent when Docker Hub has not said. It is `at` + `windowSeconds` at the latest. */
  resetsAt?: string
}

/** Describes an account without a pull quota. */
export interface UnlimitedPullsReport {
  unlimited: true
  source?: string
  /** Gives the time of the response (ISO 8601). */
  at: string
}

export interface UpstreamReport {
  hits: number
  misses: number
  bytesFromUpstream: number
  /**
   * Counts the pulls that Docker Hub would have counted without the mirror: GETs of image manifests that were answered from the store or
   * by a running fetch. Present only where the requests go to Docker Hub, or to a server that announces its quota.
   */
  pullsAvoided?: number
  state: 'ok' | 'failing' | 'open'
  /**
   * Holds the last failure, only for an upstream that is not ok or limits its clients. `failure`: `limited` for status 429,
   * `unavailable` for an outage.
   */
  lastError?: { failure?: UpstreamFailure; message: string; at: string; retryAfterSeconds?: number }
  rateLimit?: LimitedPullsReport | UnlimitedPullsReport
  /** Holds a credential that was exported to a container; an expired one counts as none until it is exported again. */
  credentials?: { state: 'valid' | 'expired'; expires?: string }
}

export interface ImageReport {
  /**
   * Names the image with its tag, as `docker.io/library/alpine:3.20`, or with `@sha256:…` when clients only asked for its digest.
   */
  name: string
  digest: string
  /** Holds the stored bytes of the image. */
  bytes: number
  pulls: number
  /** Gives the time of the last pull (ISO 8601); absent when never pulled. */
  lastPulled?: string
  /** Gives the time at which the upstream last confirmed the tag (ISO 8601). */
  checkedAt?: string
  /**
   * Numbers the images in the order of eviction: 1 goes next when the store is full. Tags of one image have the same number. Like the
   * members below, it is only in `GET /api/cache`.
   */
  evictionRank?: number
  /** Counts the bytes that pulls of this name got from the cache. */
  bytesSaved?: number
  /** Holds another digest that the upstream named for the tag, while it is not fetched, with the time (ISO 8601). */
  outdated?: { digest: string; at: string }
  /** Gives the time since which the tag points to its digest here (ISO 8601); absent when that is not remembered. */
  movedAt?: string
}

interface CheckTagRequest {
  /** Names the image with its tag, as `mirror cache ls` prints it. */
  image: string
}

/** Describes the answer of an upstream about a cached tag. */
export interface TagCheckReport {
  image: string
  /** Holds the digest that the upstream named; the cached one when it named none. */
  digest: string
  /** Is true when the upstream named another digest than the cached one; the next pull fetches it. */
  changed: boolean
  /** Gives the time in ISO 8601. */
  checkedAt: string
  /** Explains why the upstream named no digest. */
  error?: string
}

interface RemoveRequest {
  /** Holds the image names as `mirror cache ls` prints them, repositories (`docker.io/library/alpine`), or digests. */
  names: string[]
  dryRun: boolean
}

export interface RequestsRequest {
  /** Names an image or a repository, as users write it; absent for all. Requests for blobs belong to each image of their repository. */
  image?: string
  limit: number
}

export interface TraceRequest {
  /** Names an image as users write it: `alpine`, `ghcr.io/a/b@sha256:…`, `localhost:5001/app`. */
  image: string
  /** Holds the platform of the assumed client, as `linux/arm64`; default: Linux on the processor of the mirror's machine. */
  platform?: string
}

interface PruneRequest {
  dryRun: boolean
}

/** Describes a pushed image. */
export interface PushedImageReport {
  /** Names the image as `app:1.2`, or as `app@sha256:…` without a tag. */
  name: string
  digest: string
  /** Counts content that images share for each of them. */
  bytes: number
  /** Gives the time of the push (ISO 8601). */
  pushedAt: string
}

interface RegistryGcRequest {
  /** Removes images without a tag, too. */
  untagged: boolean
  /** Keeps content that arrived within this time; ms. */
  grace: number
  dryRun: boolean
}

interface RegistryPruneRequest {
  /** Removes tags that were pushed longer ago than this; ms. */
  olderThan: number
  /** Keeps this number of newest tags of each repository, however old they are. */
  keep: number
  /** Limits the removal to one repository. */
  repository?: string
  dryRun: boolean
}

export interface RemovalReport {
  /** Holds the names of removed images. */
  images: string[]
  blobs: number
  bytes: number
  /** Holds the names that matched nothing. */
  unknown: string[]
}

/** Describes a test image that only this mirror has, under every registry's name, for some minutes. */
interface ProbeImageOffer {
  id: string
  /** Names the repository of the image, as `mirror-check/3f…`; it exists below any registry. */
  repository: string
  tag: string
  digest: string
}

interface ProbeImageReport {
  /** Counts the requests for the image, by the registry under whose name the client asked. */
  seen: Record<string, number>
}

interface VerifyRequest {
  /** Moves damaged content aside, so that it is fetched again; false only reports. */
  quarantine: boolean
}

export interface VerifyProgress {
  checked: number
  total: number
  checkedBytes: number
  totalBytes: number
  damaged: string[]
  done: boolean
}

/** Holds a secret that begins one session of the dashboard. */
export interface TicketReport {
  ticket: string
  expiresInSeconds: number
}

/** Reads the token that lets a command change a running mirror; creates one when its file is absent or damaged. */
export function openAdminToken(path: string): Promise<string> {
  return openSecret(path)
}

/** Reads a secret of 64 hexadecimal digits; creates a new one when its file is absent or damaged. */
export async function openSecret(path: string): Promise<string> {
  const known = await readSecret(path)
  if (known !== undefined) return known
  const secret = randomBytes(32).toString('hex')
  await writeFileAtomic(path, `${secret}\n`)
  return secret
}

async function readSecret(path: string): Promise<string | undefined> {
  try {
    const token = (await readSmallFile(path)).trim()
    return /^[0-9a-f]{64}$/.test(token) ? token : undefined
  } catch (error) {
    if (getErrno(error) === 'ENOENT' || getErrno(error) === 'EFBIG') return undefined
    throw error
  }
}

/** Holds the context to interpret an image name as users write it. */
export interface Naming {
  /** Reports whether `host:port` is an address of the listener that the name is about. */
  readonly isOwnAddress: (host: string) => boolean
  /** Holds the registry of names without one; undefined where names have none. */
  readonly defaultUpstream: string | undefined
  /** Holds the existing images, as lists show them. */
  readonly images: readonly ListedImage[]
}

export interface ListedImage {
  /** Holds the name with a tag or a digest. */
  readonly name: string
  readonly digest: string
}

/** Is the message of the 404 for a path that the server does not know, by which a command recognizes an older server. */
export const unknownPath = 'The admin listener has nothing at this path.'

/** Gives a reason in a `NetworkReport` why the mirror does not listen on a network. */
export const engineProblem = 'the Docker engine does not answer'

export const networkProblem = 'the network does not exist yet'

/** Computes the answer to a challenge that only this instance of a mirror can give; another process on its port cannot. */
export function computeHealthProof(instance: string, challenge: string): string {
  return createHmac('sha256', instance).update(challenge).digest('hex')
}
