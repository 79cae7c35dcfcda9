import { readdirSync, readFileSync } from 'node:fs'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { getMemoryLimit } from '../lib/process.ts'
import { type OnFailure, runEvery } from '../lib/time.ts'

/** Describes the shares of the file descriptors. Their sum stays below the limit on open files. */
interface DescriptorPlan {
  /** Limits the connections to the cache and the registry, on all their addresses. Each may have one file open. */
  readonly clients: number
  /** Limits the connections to the admin listener, so that `mirror status` works while clients use up all of theirs. */
  readonly admin: number
  /** Limits further connections, which are refused: they wait for a request, or for the client to read its 503. */
  readonly refusals: number
  /** Limits the uploads in progress: each holds a file open between its requests. */
  readonly uploads: number
  /** Limits the downloads: each holds a file open. */
  readonly fills: number
  /** Limits the requests to upstreams: each holds a connection. */
  readonly requests: number
  /** Limits the hashing threads: each holds a few descriptors. */
  readonly hashThreads: number
}

/**
 * Sets the smallest limit on open files with which the server starts: it covers the process itself, three clients, two downloads
 * and one upload.
 */
const minOpenFiles = 56
const recommendedOpenFiles = 1024
/** Replaces the limit where the system reports none. */
const assumedOpenFiles = 8192
/** Counts the descriptors of a running server: standard streams, event loops and threads, listeners, koffi. */
const ownDescriptors = 20
const descriptorsPerHashThread = 5
/** Estimates the memory of a connection with a waiting request that has the largest head, bytes. */
const connectionBytes = 32 * 1024
/** Sets the share of the memory for all connections. */
const connectionsShare = 1 / 4
/** Reserves descriptors for short use: the metadata, a synced folder, statistics, a DNS lookup, a credential helper. */
const transientDescriptors = 8

const maxMetadataBytes = 256 * 1024 * 1024
const metadataShare = 1 / 4

/** Returns the limit of the memory for metadata, bytes. 256 MiB are 200,000 images with ten layers each. */
export function planMetadataMemory(memory: number = getMemoryLimit()): number {
  return Math.min(maxMetadataBytes, memory * metadataShare)
}

/**
 * Returns the limit on open files of this process; undefined where the system reports none. Node raises the soft limit to the
 * hard one at its start: https://github.com/nodejs/node/blob/v20.19.0/src/node.cc#L560 (PlatformInit).
 */
function getDescriptorLimit(): number | undefined {
  try {
    const match = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))
    return match ? Number(match[1]) : undefined
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return readReportedLimit()
  }
}

/** Reads the limit from Node's report, which is slower but needs neither /proc nor a free descriptor. */
function readReportedLimit(): number | undefined {
  const report = process.report.getReport() as { userLimits?: { open_files?: { soft?: unknown } } }
  const soft = report.userLimits?.open_files?.soft
  return typeof soft === 'number' ? soft : undefined
}

/** Throws a MirrorError (usage) for a limit that is too low. bin/run.js prints the same where this file cannot be loaded. */
export function checkDescriptorLimit(limit: number | undefined = getDescriptorLimit()): void {
  if (limit === undefined || limit >= minOpenFiles) return
  throw new MirrorError(
    `The limit on open files is ${limit}, and the mirror needs at least ${minOpenFiles} for its own files, its clients and its upstreams.`,
    {
      exit: exitCode.usage,
      hints: [
        `ulimit -n ${recommendedOpenFiles}   (in a new shell)`,
        `LimitNOFILE=${recommendedOpenFiles}   (in a systemd unit)`,
        `docker run --ulimit nofile=${recommendedOpenFiles} …`,
      ],
    },
  )
}

/**
 * Shares out the descriptors of this process. Throws a MirrorError when there are too few. `listening`: listeners, with those on
 * the gateways of networks. `memory`: bytes that the process may have, because a system with a million descriptors may have little
 * memory.
 */
export function planDescriptors({
  limit = getDescriptorLimit() ?? assumedOpenFiles,
  inUse = countDescriptorsInUse(limit),
  listening = 3,
  memory = getMemoryLimit(),
}: { limit?: number; inUse?: number | undefined; listening?: number; memory?: number } = {}): DescriptorPlan {
  checkDescriptorLimit(limit)
  const isNarrow = limit < 256
  const hashThreads = isNarrow ? 1 : 4
  // An embedding program, or a shell that leaves its files open, holds more descriptors than the server itself.
  const own = Math.max(ownDescriptors, inUse ?? 0) + hashThreads * descriptorsPerHashThread + listening
  const spare = Math.max(0, limit - own - transientDescriptors)
  const share = (part: number, min: number, max: number) => Math.min(max, Math.max(min, Math.floor(spare / part)))
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

/** Counts the open descriptors; undefined where the system does not tell. */
function countDescriptorsInUse(limit: number): number | undefined {
  try {
    // One of them is the open folder itself.
    return readdirSync('/proc/self/fd').filter((name) => Number(name) < limit).length - 1
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

/** Estimates the memory of the idle process, bytes. */
const idleBytes = 128 * 1024 * 1024
/** Freed bytes that are worth a scan of all free pages. */
const minTrimBytes = 16 * 1024 * 1024
const trimIntervalMs = 2000

interface SpareMemoryOptions {
  /** Returns freed memory to the system. */
  readonly trim: () => Promise<void>
  /** Returns the memory of the process, bytes. */
  readonly held?: () => number
  readonly everyMs?: number
  /** Takes an error: reading the memory fails when no descriptor is left. */
  readonly onFailure: OnFailure
}

/**
 * Returns memory to the system after a burst of requests. The C library keeps freed memory between blocks in use, several hundred MB
 * after a while, and never returns it by itself. Returns a function that stops this.
 */
export function spareMemory(options: SpareMemoryOptions): () => void {
  const { trim, held = () => process.memoryUsage.rss(), everyMs = trimIntervalMs, onFailure } = options
  /** Sets the bytes from which a trim is worthwhile. */
  let limit = idleBytes + minTrimBytes
  const poll = async () => {
    const before = held()
    limit = Math.min(limit, Math.max(idleBytes, before) + minTrimBytes)
    if (before < limit) return
    await trim()
    const after = held()
    // The next poll finds memory that is freed later. Memory in use raises the limit, so that it is not scanned again.
    const gave = before - after >= minTrimBytes / 2
    limit = Math.max(idleBytes, gave ? after - minTrimBytes : after) + minTrimBytes
  }
  return runEvery(everyMs, poll, onFailure)
}
