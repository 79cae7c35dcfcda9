import { readdirSync, readFileSync } from 'node:fs'
import { memoryLimit } from '../lib/body-memory.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { every, type OnFailure } from '../lib/time.ts'

/** How the file descriptors that the system grants are shared out. Their sum stays below the limit. */
interface DescriptorPlan {
  /** Connections to the cache and the registry, on all their addresses. Each may have one file open. */
  readonly clients: number
  /** Connections to the admin listener, so that `mirror status` works while clients use up all of theirs. */
  readonly admin: number
  /** Connections beyond those that wait for their request, or for their client to read its 503. */
  readonly refusals: number
  /** Uploads under way: each holds a file open between its requests. */
  readonly uploads: number
  /** Blobs that are being fetched: each holds a file open. */
  readonly fills: number
  /** Requests to upstreams: each holds a connection. */
  readonly requests: number
  /** Threads that hash: each holds a few descriptors. */
  readonly hashThreads: number
}

/**
 * The least limit to start with. It leaves room for what the process itself needs, three clients, two fetches and one upload.
 */
const leastLimit = 56
const recommended = 1024
/** Where the system does not tell, or grants any number. */
const assumedLimit = 8192
/** Descriptors that are open when the server is up: standard streams, event loops and threads, listeners, koffi. */
const ownDescriptors = 20
const perHashThread = 5
/** Memory of a connection with a request that waits, whose head is as large as it may be, bytes. */
const connectionBytes = 32 * 1024
/** The part of the memory that connections may take in all. */
const connectionsShare = 1 / 4
/** For a moment at a time: a journal, a folder that is synced, statistics, a name that is resolved, a credential helper. */
const passingDescriptors = 8

/**
 * The limit on open files of this process; undefined where the system does not tell. Node itself has raised the soft limit to
 * the hard one at its start: https://github.com/nodejs/node/blob/v20.19.0/src/node.cc#L560 (PlatformInit).
 */
function descriptorLimit(): number | undefined {
  try {
    const match = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))
    return match ? Number(match[1]) : undefined
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return reportedLimit()
  }
}

/** Where there is no /proc, and when not a single file can be opened: Node's report knows, but takes longer. */
function reportedLimit(): number | undefined {
  const report = process.report.getReport() as { userLimits?: { open_files?: { soft?: unknown } } }
  const soft = report.userLimits?.open_files?.soft
  return typeof soft === 'number' ? soft : undefined
}

/** Throws a MirrorError for a limit that no server can work with. bin/run.js says the same where this file cannot be loaded. */
export function checkDescriptorLimit(limit: number | undefined = descriptorLimit()): void {
  if (limit === undefined || limit >= leastLimit) return
  throw new MirrorError(
    `The limit on open files is ${limit}, and the mirror needs at least ${leastLimit} for its own files, its clients and its upstreams.`,
    {
      exit: exitCode.usage,
      hints: [
        `ulimit -n ${recommended}   (in a new shell)`,
        `LimitNOFILE=${recommended}   (in a systemd unit)`,
        `docker run --ulimit nofile=${recommended} …`,
      ],
    },
  )
}

/**
 * Shares out the descriptors of this process. Throws a MirrorError when there are too few. `listening`: addresses that the
 * server listens on, further ones on the gateways of networks among them. `memory`: bytes that the process may have; a system that
 * grants a million descriptors may grant little memory.
 */
export function planDescriptors({
  limit = descriptorLimit() ?? assumedLimit,
  inUse = descriptorsInUse(limit),
  listening = 3,
  memory = memoryLimit(),
}: { limit?: number; inUse?: number | undefined; listening?: number; memory?: number } = {}): DescriptorPlan {
  checkDescriptorLimit(limit)
  const isNarrow = limit < 256
  const hashThreads = isNarrow ? 1 : 4
  // A program that embeds a mirror, or a shell that hands on its files, has more open than a server by itself.
  const own = Math.max(ownDescriptors, inUse ?? 0) + hashThreads * perHashThread + listening
  const spare = Math.max(0, limit - own - passingDescriptors)
  const share = (part: number, least: number, most: number) => Math.min(most, Math.max(least, Math.floor(spare / part)))
  const rest = {
    admin: share(64, 2, 32),
    refusals: share(32, 2, 64),
    uploads: share(16, 1, 512),
    fills: share(16, 2, 512),
    requests: share(8, 3, 1024),
  }
  const others = Object.values(rest).reduce((sum, part) => sum + part, 0)
  const clients = Math.min((spare - others) / 2, (memory * connectionsShare) / connectionBytes)
  return { ...rest, clients: Math.max(3, Math.floor(clients)), hashThreads }
}

/** Descriptors that are open now and count against the limit; undefined where the system does not tell. */
function descriptorsInUse(limit: number): number | undefined {
  try {
    // One of them is the folder itself.
    return readdirSync('/proc/self/fd').filter((name) => Number(name) < limit).length - 1
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

/** What the process holds when it has little to do, roughly. */
const restingBytes = 128 * 1024 * 1024
/** Less is not worth a look at every free page. */
const worthwhileBytes = 16 * 1024 * 1024
const everyMilliseconds = 2000

interface SpareMemoryOptions {
  /** Gives the system back what was freed. */
  readonly trim: () => Promise<void>
  /** What the process holds, bytes. */
  readonly held?: () => number
  readonly everyMs?: number
  /** Takes what a look throws: without a descriptor left nobody can say what the process holds. */
  readonly onFailure: OnFailure
}

/**
 * Gives memory back that a rush has taken: the C library keeps what was freed between what was not, several hundred MB after
 * a while, and on its own never lets go of it. Returns how to stop.
 */
export function spareMemory(options: SpareMemoryOptions): () => void {
  const { trim, held = () => process.memoryUsage.rss(), everyMs = everyMilliseconds, onFailure } = options
  /** From where on a look is worth it. */
  let limit = restingBytes + worthwhileBytes
  const look = async () => {
    const before = held()
    limit = Math.min(limit, Math.max(restingBytes, before) + worthwhileBytes)
    if (before < limit) return
    await trim()
    const after = held()
    // What has become free since, or is only seen to be, is found by the next look; what is needed is left alone.
    const gave = before - after >= worthwhileBytes / 2
    limit = Math.max(restingBytes, gave ? after - worthwhileBytes : after) + worthwhileBytes
  }
  return every(everyMs, look, onFailure)
}
