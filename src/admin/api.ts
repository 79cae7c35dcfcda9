import { randomBytes } from 'node:crypto'
import type { Totals } from '../cache/stats.ts'
import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'

/**
 * The admin operations of a mirror: the running server implements them all (daemon/admin-actions.ts), `AdminClient` sends them over
 * HTTP, and `cache` and `registry` of a stopped mirror work on its disk (local.ts).
 */
export interface AdminApi {
  /** Returns why the mirror cannot fetch by its own fault, one sentence each; empty when it can. */
  troubles(): Promise<readonly string[]>
  status(): Promise<StatusReport>
  /** Returns Prometheus text and its content type. */
  metrics(): Promise<{ readonly contentType: string; readonly text: string }>
  readonly cache: CacheApi
  /** Each operation throws an OciError (404) while the registry is switched off. */
  readonly registry: RegistryApi
  /** Offers an image that only this mirror has. */
  offerProbeImage(): Promise<ProbeImageOffer>
  /** Ends the offer. Throws an OciError (404) for an id that is not offered. */
  endProbeImage(id: string): Promise<ProbeImageReport>
  /** Asks the server to drain and end; returns before it does. */
  stop(): Promise<void>
}

/** Operations on cached images. */
export interface CacheApi {
  list(): Promise<ImageReport[]>
  remove(request: RemoveRequest): Promise<RemovalReport>
  /** Evicts to the configured limits. */
  prune(request: PruneRequest): Promise<RemovalReport>
  /** Hashes every blob. Yields progress, the last one with `done`. */
  verify(request: VerifyRequest, signal: AbortSignal): AsyncIterable<VerifyProgress>
}

/** Operations on pushed images. */
export interface RegistryApi {
  list(): Promise<PushedImageReport[]>
  /** Lists the repositories whose record is damaged. */
  damaged(): Promise<DamagedRepositoryReport[]>
  remove(request: RemoveRequest): Promise<RemovalReport>
  /** Removes content that no image needs. */
  gc(request: RegistryGcRequest): Promise<RemovalReport>
  /** Removes old tags with their images. */
  prune(request: RegistryPruneRequest): Promise<RemovalReport>
}

/**
 * What the admin listener says and takes, as JSON. `status` is the contract of `mirror status --json`.
 *
 * GET  /healthz            {"status":"ok"}; 503 {"status":"degraded","reasons":[…]} while the mirror cannot fetch by its own fault;
 *                          with `?challenge=` to a mirror in a container also `proof`, see health-proof.ts
 * GET  /metrics            Prometheus text
 * GET  /api/status         StatusReport
 * POST /api/cache/rm       RemoveRequest → RemovalReport
 * POST /api/cache/prune    PruneRequest → RemovalReport
 * POST /api/cache/verify   VerifyRequest → NDJSON of VerifyProgress, the last with `done`
 * GET  /api/registry       PushedImageReport[]
 * POST /api/registry/rm    RemoveRequest → RemovalReport
 * POST /api/registry/gc    RegistryGcRequest → RemovalReport
 * POST /api/registry/prune RegistryPruneRequest → RemovalReport
 * POST /api/canary         ProbeImageOffer
 * POST /api/canary/end     { id } → ProbeImageReport
 * POST /api/stop           202, then the server drains and ends
 *
 * GET from loopback needs no token; everything else needs `Authorization: Bearer <token>`.
 */
export interface StatusReport {
  version: string
  running: true
  runtime: 'process' | 'container'
  /** `ssh://me@there`: the Docker engine of another machine that the mirror is on; its addresses are that machine's. */
  engine?: string
  /** Whose mirror it is, where that is not the user who asks: root under sudo. */
  user?: string
  pid: number
  /** The version of the command that asked, where it is another one. */
  cliVersion?: string
  /** ISO 8601. */
  startedAt: string
  uptimeSeconds: number
  /** ISO 8601: totals are counted since then, across restarts. */
  since: string
  endpoints: { cache: string[]; registry: string[]; admin: string[]; networks: Record<string, string> }
  /** By the name of the Docker network. */
  networks: Record<string, NetworkReport>
  /** How stored blobs leave: by the kernel alone, or through this process. */
  sendBlob: 'sendfile' | 'portable'
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
  /** Why the mirror cannot fetch by its own fault, or its registry serves nobody; absent while all is well. */
  troubles?: string[]
  /** Host headers that are not this mirror's, and how often they came. */
  refusedHosts: Record<string, number>
  /** Registries that clients asked for and that are not mirrored, and how often. */
  refusedRegistries: Record<string, number>
  images: ImageReport[]
}

/** What was pushed; all 0 where no registry runs. */
interface RegistryCounters {
  repositories: number
  tags: number
  manifests: number
  bytes: number
  /** Under way. */
  uploads: number
  /** What containers of Docker networks may do; absent where no registry runs. */
  networks?: 'read' | 'write'
  /** Repositories whose record is damaged; absent where there are none. */
  damaged?: DamagedRepositoryReport[]
}

export interface DamagedRepositoryReport {
  /** Absent where the record does not even tell its name. */
  repository?: string
  /** The record, or a copy of one that is served without its damaged lines. */
  path: string
  /** Where a sound record belongs. */
  original: string
  reason: string
  /** False: requests for it are answered with 500, and nothing can be pushed to it. */
  served: boolean
}

/** The totals of the cache, and hits / (hits + misses). */
interface CacheCounters extends Totals {
  hitRatio: number
}

/** Whether containers of a Docker network can reach the mirror. */
export interface NetworkReport {
  /** `waiting`: there is nothing to listen on yet. `failed`: the address cannot be listened on; it is tried again. */
  state: 'listening' | 'waiting' | 'failed'
  url?: string
  /** Why it waits, or has failed. */
  reason?: string
}

export interface UpstreamReport {
  hits: number
  misses: number
  bytesFromUpstream: number
  state: 'ok' | 'failing' | 'open'
  /** The last failure, of an upstream that is not ok or limits its clients. */
  lastError?: { message: string; at: string; retryAfterSeconds?: number }
  rateLimit?: { limit: number; remaining: number; windowSeconds: number; source?: string; at: string }
  /** A credential that was handed to a container; an expired one counts as none until it is handed over anew. */
  credentials?: { state: 'valid' | 'expired'; expires?: string }
}

export interface ImageReport {
  /** `docker.io/library/alpine:3.20`, or with `@sha256:…` when only ever asked for by digest. */
  name: string
  digest: string
  /** Bytes of it that are held. */
  bytes: number
  pulls: number
  /** ISO 8601; absent when never pulled. */
  lastPulled?: string
  /** ISO 8601: when the upstream last confirmed the tag. */
  checkedAt?: string
}

export interface RemoveRequest {
  /** Image names as `cache ls` prints them, repositories (`docker.io/library/alpine`), or digests. */
  names: string[]
  dryRun: boolean
}

export interface PruneRequest {
  dryRun: boolean
}

/** An image that was pushed. */
export interface PushedImageReport {
  /** `app:1.2`, or `app@sha256:…` of one without a tag. */
  name: string
  digest: string
  /** What images share is counted for each. */
  bytes: number
  /** ISO 8601. */
  pushedAt: string
}

export interface RegistryGcRequest {
  /** Images without a tag go too. */
  untagged: boolean
  /** What came within this time stays; ms. */
  grace: number
  dryRun: boolean
}

export interface RegistryPruneRequest {
  /** Tags that were pushed longer ago than this go; ms. */
  olderThan: number
  /** How many tags of each repository stay however old they are, the newest ones. */
  keep: number
  /** Of one repository only. */
  repository?: string
  dryRun: boolean
}

export interface RemovalReport {
  /** Names of images that went. */
  images: string[]
  blobs: number
  bytes: number
  /** Names that matched nothing. */
  unknown: string[]
}

/** An image that only this mirror has, under every registry's name, for some minutes. */
export interface ProbeImageOffer {
  id: string
  /** `mirror-check/3f…`, below any registry. */
  repository: string
  tag: string
  digest: string
}

export interface ProbeImageReport {
  /** The registries under whose name the mirror was asked for it, with the number of questions. */
  seen: Record<string, number>
}

export interface VerifyRequest {
  /** Move damaged content aside so that it is fetched again; false only reports. */
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

/** The secret that lets a command change a running mirror. */
export function openAdminToken(path: string): Promise<string> {
  return openSecret(path)
}

/** A secret of 64 hexadecimal digits that outlives the process; made anew when its file is absent or damaged. */
export async function openSecret(path: string): Promise<string> {
  const known = await readSecret(path)
  if (known !== undefined) return known
  const secret = randomBytes(32).toString('hex')
  await writeFileAtomic(path, `${secret}\n`)
  return secret
}

/** The secret in the file, if there is one. */
async function readSecret(path: string): Promise<string | undefined> {
  try {
    const token = (await readSmallFile(path)).trim()
    return /^[0-9a-f]{64}$/.test(token) ? token : undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'EFBIG') return undefined
    throw error
  }
}

/** What it takes to read a name as its user means it. */
export interface Naming {
  /** Whether `host:port` is an address of the listener that the name is about. */
  readonly isOurs: (host: string) => boolean
  /** Of names without a registry; undefined where names have none. */
  readonly defaultUpstream: string | undefined
  /** The images that are there, as they are listed. */
  readonly images: readonly ListedImage[]
}

export interface ListedImage {
  /** With its tag, or its digest. */
  readonly name: string
  readonly digest: string
}

/** Why nobody listens on a network, in the report of the mirror: nobody tells it of networks. */
export const engineProblem = 'the Docker engine does not answer'

/** Its engine knows no network of that name. */
export const networkProblem = 'the network does not exist yet'
