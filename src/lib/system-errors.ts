import { accessSync, constants, lstatSync, type Stats, statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { devNull } from 'node:os'
import { dirname, resolve, sep } from 'node:path'
import { getCode, getErrno } from './errors.ts'
import { getUserName } from './ownership.ts'
import { quoteShellWord } from './process.ts'
import type { Clock } from './time.ts'

const verbs: Readonly<Record<string, string>> = {
  open: 'open',
  mkdir: 'create the folder',
  scandir: 'list',
  unlink: 'remove',
  rmdir: 'remove',
  rm: 'remove',
}

const partFailures: Record<Part, string> = {
  fetch: 'The mirror cannot send requests to upstreams',
  hash: 'The mirror cannot verify digests of downloads',
}
/**
 * Sets the time after which a failure that has not recurred counts as over, ms. A load peak exhausts descriptors and memory only
 * briefly.
 */
const expiryMs = { shortage: 30_000, other: 300_000 }
const shortageCodes = /^(EMFILE|ENFILE|ENOMEM)$/
/** Lists the codes of failures of this process itself: no descriptor, no memory, a module or a thread that cannot be loaded. */
const processFaultCodes =
  /^(EMFILE|ENFILE|ENOMEM|MODULE_NOT_FOUND|ERR_MODULE_NOT_FOUND|ERR_DLOPEN_FAILED|ERR_WORKER_.*)$/

/** Explains why the system refuses access to a file or folder. */
interface FileFailure {
  /** Names the file or folder of the failed call; undefined when the error does not name it. */
  readonly path: string | undefined
  /** Holds the reason as a clause: `it does not exist`. */
  readonly why: string
  /** Lists the commands that help, each with its purpose. Empty when only another file or folder helps. */
  readonly next: readonly string[]
  /** Names the user who owns the file or folder that denies the access. */
  readonly owner: string | undefined
}

/** Explains a system error about a file; undefined for any other error. `path`: used for an error that names none. */
export function describeFileFailure(error: unknown, path = getErrorPath(error)): FileFailure | undefined {
  const plain = (why: string, next: string[] = []): FileFailure => ({ path, why, next, owner: undefined })
  switch (getErrno(error)) {
    case 'EACCES':
    case 'EPERM':
      return path === undefined ? plain('no permission') : { path, ...describeDenial(resolve(path)) }
    case 'EROFS':
      return plain('its file system is mounted read-only')
    case 'ENOSPC':
    case 'EDQUOT':
      return plain('the disk is full', [
        `Free some space: df -h${path === undefined ? '' : ` ${findNearestPath(path)}`}`,
      ])
    case 'EEXIST':
    case 'ENOTDIR':
      return plain('a file is in the way of a folder', ['Move the file that is in the way'])
    case 'ENOENT':
      return plain('it does not exist')
    case 'EISDIR':
      return plain('it is a folder')
    case 'ELOOP':
      return plain('its symbolic links go in a circle')
    case 'ENAMETOOLONG':
      return plain('its name is too long')
    default:
      return undefined
  }
}

/** Formats the failure as a sentence: `Cannot open /x/y: it does not exist.` Undefined when no path is known. */
export function formatFileFailure(error: unknown, { path, why }: FileFailure): string | undefined {
  return path === undefined ? undefined : `Cannot ${getVerb(error)} ${path}: ${why}.`
}

/** Returns the reason as a clause for `FILE cannot be read: …`; the error's message when there is no explanation. */
export function getFileFailureReason(error: unknown): string {
  return describeFileFailure(error)?.why ?? (error instanceof Error ? error.message : String(error))
}

function getVerb(error: unknown): string {
  const { syscall } = error as NodeJS.ErrnoException
  return verbs[syscall ?? ''] ?? 'use'
}

function getErrorPath(error: unknown): string | undefined {
  const { path } = error as { path?: unknown }
  return typeof path === 'string' ? path : undefined
}

/** Finds what denies the access: a folder above that cannot be entered or written, or the file or folder itself. */
function describeDenial(path: string): Omit<FileFailure, 'path'> {
  const closed = getFoldersAbove(path).find((folder) => !canAccess(folder, constants.X_OK))
  if (closed !== undefined) return describeDenialBy(closed, 'u+rwx', false)
  if (statIfPresent(path) !== undefined) return describeDenialBy(path, 'u+rw', true)
  return describeDenialBy(dirname(path), 'u+w', false)
}

/** Explains the denial by one file or folder. `isItself`: it is the requested one, not a folder above. `mode`: the missing permissions. */
function describeDenialBy(path: string, mode: string, isItself: boolean): Omit<FileFailure, 'path'> {
  const stats = statIfPresent(path)
  if (stats === undefined || process.geteuid === undefined) return { why: 'no permission', next: [], owner: undefined }
  const isFolder = stats.isDirectory()
  if (stats.uid === process.geteuid()) {
    const adds = isItself && isFolder ? 'u+rwx' : mode
    const what = isItself ? 'its mode denies it' : `the mode of ${path} denies it`
    return { why: `no permission, because ${what}`, next: [`chmod ${adds} ${quoteShellWord(path)}`], owner: undefined }
  }
  const owner = getUserName(stats.uid)
  const why = isItself ? `it belongs to ${owner}` : `${path} belongs to ${owner}`
  // Suggest no chown for a folder above, because other users may need it too.
  const next = isItself ? [`sudo chown -R "$(id -un)": ${quoteShellWord(path)}   (if it should be yours)`] : []
  return { why: `no permission, because ${why}`, next, owner }
}

/** Returns the existing folders above a path, from the top down. */
function getFoldersAbove(path: string): string[] {
  const folders: string[] = []
  for (let at = path; at !== dirname(at);) {
    at = dirname(at)
    if (statIfPresent(at)?.isDirectory()) folders.unshift(at)
  }
  return folders
}

/** Returns the path, or the lowest existing folder above it, quoted for a shell. */
function findNearestPath(path: string): string {
  let at = resolve(path)
  while (at !== sep && at !== dirname(at) && statIfPresent(at) === undefined) at = dirname(at)
  return quoteShellWord(at)
}

function canAccess(path: string, mode: number): boolean {
  try {
    accessSync(path, mode)
    return true
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return false
  }
}

function statIfPresent(path: string): Stats | undefined {
  try {
    return statSync(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
  }
  try {
    return lstatSync(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

type Part = 'fetch' | 'hash'

/** Returns the code of a failure of this process itself, from the error or its causes; undefined for any other failure. */
export function findProcessFaultCode(error: unknown): string | undefined {
  const code = getCode(error)
  if (code !== undefined && processFaultCodes.test(code)) return code
  if (error instanceof AggregateError)
    return error.errors.map(findProcessFaultCode).find((found) => found !== undefined)
  return error instanceof Error && error.cause !== undefined ? findProcessFaultCode(error.cause) : undefined
}

/** Receives the outcome of each operation. */
export interface WorkWatcher {
  failed(error: unknown): void
  worked(): void
}

/**
 * Records faults of this process itself that keep it from fetching; an upstream's outage is none. A fault ends with the next success
 * of the same part.
 */
export class ProcessHealth {
  readonly #clock: Clock
  readonly #parts = new Map<Part, { readonly reason: string; readonly until: number }>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Returns the watcher for a part's failures and successes. It ignores failures that have another cause than this process. */
  watch(part: Part): WorkWatcher {
    return {
      failed: (error) => {
        const code = part === 'hash' ? (getCode(error) ?? 'the thread has ended') : findProcessFaultCode(error)
        if (code === undefined) return
        const until = this.#clock.monotonic() + (shortageCodes.test(code) ? expiryMs.shortage : expiryMs.other)
        this.#parts.set(part, { reason: `${partFailures[part]}: ${code}`, until })
      },
      worked: () => void this.#parts.delete(part),
    }
  }

  /** Returns the current faults, one sentence each; empty when there are none. */
  async find(): Promise<string[]> {
    const now = this.#clock.monotonic()
    const noted = [...this.#parts.values()].filter(({ until }) => until >= now).map(({ reason }) => reason)
    const descriptors = await checkDescriptors()
    return descriptors === undefined ? noted : [...noted, descriptors]
  }
}

async function checkDescriptors(): Promise<string | undefined> {
  try {
    await (await open(devNull)).close()
    return undefined
  } catch (error) {
    const code = getErrno(error)
    if (code === undefined) throw error
    return `The mirror cannot open a file: ${code}`
  }
}
