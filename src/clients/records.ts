import { chmod, lstat, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { findInvokingUser } from '../admin/find-mirror.ts'
import { renderRootCommand } from '../admin/sudo.ts'
import { mirrorPaths, mustCheckOwners, getSystemStateDir } from '../config/paths.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { makeFolder, ignoreMissing, syncFolder, writeFileAtomic } from '../lib/fs.ts'
import { isRootControlled } from '../lib/ownership.ts'
import { quoteShellWord, type CommandEnvironment } from '../lib/process.ts'
import { type ClientName, clientNames, type Machine, type RecordFolders } from './types.ts'

/** Records what mirror did to the files of one target, and what an undo needs. */
export interface ClientRecord {
  readonly client: ClientName
  /** Holds the `id` of the target. */
  readonly place: string
  /** Holds the `title` of the target. */
  readonly title: string
  /** Holds the details from which the adapter restores the target. */
  readonly details: Readonly<Record<string, string>>
  /** Holds the value of `--root`; undefined for the machine itself. */
  readonly root: string | undefined
  /** Gives the time of the first write (ISO 8601). */
  readonly since: string
  readonly cache: string
  readonly registry: string | undefined
  /** Is true when the mirror's CA was written. */
  readonly ca?: boolean
  /** Is true when the user gave the address (`--mirror`) and it is not one of this machine's mirror. */
  readonly isNamed?: boolean
  /** Is true when the client falls back to the origin while the mirror fails. */
  readonly fallback: boolean
  readonly files: readonly RecordedFile[]
  /** Holds the folders that mirror created for the files, outermost first. */
  readonly folders: readonly string[]
  /** Is true when the files are restored, but the running client uses the mirror until it is reloaded. */
  readonly undone?: boolean
}

/** Records a file that mirror wrote or removed. */
export interface RecordedFile {
  readonly path: string
  /** Holds the backup of the earlier file; undefined when there was none. */
  readonly before:
    | { readonly backup: string; readonly mode: number; readonly uid: number; readonly gid: number }
    | undefined
  /** Holds the SHA-256 of the written content in hex; undefined when mirror removed the file. */
  readonly written: string | undefined
  /** Holds the SHA-256 of further contents by mirror that the file may have after an aborted change, in hex. */
  readonly also?: readonly string[]
}

/** Holds a record as it was read. */
export interface StoredRecord extends ClientRecord {
  /** Is true when only root can change it. */
  readonly lockedByRoot: boolean
}

export type ClientRecords = ReturnType<typeof openClientRecords>

/**
 * Opens the records of configured clients. Each is a file of its own in `configured/`, so that concurrent runs do not overwrite
 * each other's. A path alone is a single state folder without a system folder.
 */
export function openClientRecords(where: string | RecordFolders) {
  const { own, system, isRoot } = typeof where === 'string' ? { own: where, system: undefined, isRoot: false } : where
  const shared = system === own ? undefined : system

  function getRecordFolder(record: Pick<ClientRecord, 'root' | 'details'>): string {
    const isShared = shared !== undefined && isRoot && (own === undefined || isSystemWide(record))
    const folder = isShared ? shared : own
    if (folder === undefined) throw new Error('There is no folder for records')
    return folder
  }

  const configured = {
    /** Lists all records, oldest first. Throws MirrorError for an unreadable folder, or a damaged record. */
    async list(): Promise<StoredRecord[]> {
      const records = [
        ...(own === undefined ? [] : await readRecords(own, false)),
        ...(shared === undefined ? [] : await readRecords(shared, !isRoot)),
      ]
      return records.toSorted((one, other) => one.since.localeCompare(other.since))
    },

    /** Writes a record. It replaces the record of the same client, target and root. */
    async put(record: ClientRecord): Promise<void> {
      const folder = getRecordFolder(record)
      const text = `${JSON.stringify({ ...record, lockedByRoot: undefined }, null, 2)}\n`
      if (folder === shared) await writePublicRecord(folder, getRecordPath(folder, record), text)
      else await writeFileAtomic(getRecordPath(folder, record), text)
      // Remove the record of an older version, which wrote system-wide records to root's state folder.
      if (folder === shared && own !== undefined) await removeRecord(own, record)
    },

    async remove(record: ClientRecord): Promise<void> {
      if (own !== undefined) await removeRecord(own, record)
      if (shared !== undefined && isRoot) await removeRecord(shared, record)
    },

    /** Moves, as root, system-wide records from root's state folder, where older versions wrote them, to the system folder. */
    async migrate(): Promise<void> {
      if (own === undefined || shared === undefined || !isRoot) return
      for (const record of await readRecords(own, false)) if (isSystemWide(record)) await configured.put(record)
    },

    /** Returns the folder for the backups of a record. */
    getBackupFolder: (record: Pick<ClientRecord, 'root' | 'details'>) => join(getRecordFolder(record), 'backups'),
  }
  return configured
}

async function removeRecord(folder: string, record: ClientRecord): Promise<void> {
  await rm(getRecordPath(folder, record), { force: true })
  await ignoreMissing(() => syncFolder(join(folder, 'configured')))
}

function getRecordPath(folder: string, record: ClientRecord): string {
  return join(folder, 'configured', getRecordName(record))
}

/** Reports whether a record is about files of the whole machine, not of one user. */
function isSystemWide({ root, details }: Pick<ClientRecord, 'root' | 'details'>): boolean {
  return root === undefined && details['scope'] === 'system'
}

async function readRecords(folder: string, lockedByRoot: boolean): Promise<StoredRecord[]> {
  const configured = join(folder, 'configured')
  const names = (await readIfPresent(configured, () => readdir(configured))) ?? []
  const files = names.filter((name) => /^[^.].*\.json$/.test(name)).map((name) => join(configured, name))
  const records = await Promise.all(files.map(readRecord))
  return records.flatMap((record) => (record === undefined ? [] : [{ ...record, lockedByRoot }]))
}

/** Writes a record that all users can read, independent of the umask. */
async function writePublicRecord(folder: string, file: string, text: string): Promise<void> {
  const configured = join(folder, 'configured')
  await makeFolder(configured)
  for (const path of [folder, configured]) await chmod(path, 0o755)
  await writeFileAtomic(file, text)
  await chmod(file, 0o644)
}

/** Returns the file name of a record, which is unique for client, target and root. */
function getRecordName({ client, place, root }: ClientRecord): string {
  // Load the module on use, because listing records must start fast.
  const { createHash } = process.getBuiltinModule('node:crypto')
  const hash = createHash('sha256')
    .update(JSON.stringify([client, place, root]))
    .digest('hex')
  return `${client}-${hash.slice(0, 16)}.json`
}

/** Reports whether two records have the same client, target and root. */
export function isSameTarget(
  one: Pick<ClientRecord, 'client' | 'place' | 'root'>,
  other: Pick<ClientRecord, 'client' | 'place' | 'root'>,
): boolean {
  return one.client === other.client && one.place === other.place && one.root === other.root
}

/** Returns undefined for an absent path. Throws MirrorError without permission to read it. */
async function readIfPresent<T>(path: string, read: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ignoreMissing(read)
  } catch (cause) {
    if (getErrno(cause) !== 'EACCES') throw cause
    throw new MirrorError(`No permission to read ${path}, so the configured clients are unknown.`, {
      hints: [`ls -ld ${path}   (shows its owner)`],
      cause,
    })
  }
}

/** Reads a record; undefined when it was removed since. Throws MirrorError for a damaged one, because an undo without it would be a guess. */
async function readRecord(file: string): Promise<ClientRecord | undefined> {
  const text = await readIfPresent(file, () => readFile(file, 'utf8'))
  if (text === undefined) return undefined
  try {
    const record: unknown = JSON.parse(text)
    if (isRecord(record)) return record
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
  }
  throw new MirrorError(`${file} is damaged, so mirror cannot undo this configuration.`, {
    hints: ['Restore the files by hand: their backups are in backups/ of the same state folder'],
  })
}

function isRecord(value: unknown): value is ClientRecord {
  if (typeof value !== 'object' || value === null) return false
  const { client, place, since, files, folders, details } = value as Record<string, unknown>
  const known: readonly unknown[] = clientNames
  return (
    known.includes(client) &&
    typeof since === 'string' &&
    typeof place === 'string' &&
    typeof details === 'object' &&
    details !== null &&
    Array.isArray(files) &&
    Array.isArray(folders)
  )
}

/**
 * Returns the folders of this user's records. Root reads no folder that another user can change, because a record decides which
 * file to write with which content. For root, its own `MIRROR_HOME` holds the system-wide records as well. Throws MirrorError for a
 * system folder that users other than root can change.
 */
export async function findRecordFolders(surroundings: CommandEnvironment): Promise<RecordFolders> {
  const { stateDir } = mirrorPaths(surroundings)
  const system = getSystemStateDir(surroundings.platform)
  const isRoot = process.geteuid?.() === 0
  if (!isRoot || system === undefined) return { own: stateDir, system, isRoot: false }
  const own = isRootControlled(stateDir) ? stateDir : undefined
  if (own !== undefined && surroundings.env['MIRROR_HOME']) return { own, system: undefined, isRoot }
  if (isRootControlled(system)) return { own, system, isRoot }
  throw new MirrorError(`Users other than root can change ${system}, so its records are not used.`, {
    hints: [
      `ls -ld ${system}   (must be owned by root, with mode 755)`,
      `chown -R root: ${system}; chmod 755 ${system}`,
    ],
  })
}

/**
 * Describes, as root, the records of root in folders that another user can change, where older versions wrote them under `sudo -E`,
 * and how to undo them by hand. Undefined when there are none. mirror never uses these records.
 */
export async function describeStrayRecords(surroundings: CommandEnvironment): Promise<string | undefined> {
  if (!mustCheckOwners(surroundings)) return undefined
  const user = await findInvokingUser(surroundings)
  const callers = surroundings.callers ?? surroundings
  const candidates = [
    mirrorPaths(callers),
    mirrorPaths({ ...callers, env: { ...callers.env, MIRROR_HOME: undefined } }),
    ...(user === undefined ? [] : [mirrorPaths({ ...surroundings, env: {}, homedir: user.home })]),
  ]
  for (const { stateDir } of candidates) {
    const folder = join(stateDir, 'configured')
    if (isRootControlled(folder)) continue
    const names = await listRootsRecords(folder)
    if (names.length === 0) continue
    const [records, backups] = [quoteShellWord(folder), quoteShellWord(join(stateDir, 'backups'))]
    return [
      `${folder} has records of root that other users can change, so they are not used: ${names.join(', ')}.`,
      'To undo these configurations, look up the files and their backups, restore the backups, then remove the records:',
      `  sudo cat ${records}/*.json`,
      `  sudo ls -lR ${backups}`,
      `  sudo rm -r ${records} ${backups}`,
    ].join('\n')
  }
  return undefined
}

/** Lists the clients of the records in a folder that root owns. */
async function listRootsRecords(folder: string): Promise<string[]> {
  const names = (await ignoreMissing(() => readdir(folder))) ?? []
  const found: string[] = []
  for (const name of names) {
    const client = /^([a-z0-9]+)-[0-9a-f]+\.json$/.exec(name)?.[1]
    const what = client === undefined ? undefined : await ignoreMissing(() => lstat(join(folder, name)))
    if (what?.isFile() && what.uid === 0) found.push(client!)
  }
  return [...new Set(found)].toSorted()
}

/** Opens the records of a machine. */
export function openMachineRecords({ records, stateDir }: Pick<Machine, 'records' | 'stateDir'>): ClientRecords {
  return openClientRecords(records ?? stateDir)
}

type TargetIdentity = Pick<ClientRecord, 'client' | 'root' | 'details'> & { readonly lockedByRoot?: boolean }

/** Returns the arguments that configure this target, or undo it with `--undo`, and no other target of the client. */
export function getConfigureArguments({ client, root, details }: TargetIdentity, ...more: string[]): string[] {
  const options = { root, scope: details['scope'], cluster: details['cluster'], file: details['file'] }
  const flags = Object.entries(options).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, value]))
  return ['configure', client, ...flags, ...more]
}

/** Returns the command that configures a target for the first time, with sudo for one that only root can change. */
export function getFirstCommand(
  machine: Machine,
  client: ClientRecord['client'],
  { details }: Pick<ClientRecord, 'details'>,
): Promise<string> {
  // Only root may write the files of the system.
  const lockedByRoot = details['scope'] === 'system' && process.geteuid?.() !== 0
  return getConfigureCommand(machine, { client, root: undefined, details, lockedByRoot })
}

/** Returns the command line with these arguments, with sudo for a target that only root can change. */
export async function getConfigureCommand(
  machine: Machine,
  target: TargetIdentity,
  ...more: string[]
): Promise<string> {
  const args = getConfigureArguments(target, ...more)
  // The records of root are root's, also those of a client that is not system-wide.
  const belongsToRoot = target.lockedByRoot === true || process.geteuid?.() === 0
  return belongsToRoot ? renderRootCommand(machine, args) : ['mirror', ...args.map(quoteShellWord)].join(' ')
}
