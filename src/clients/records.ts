import { chmod, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { rootCommand } from '../admin/sudo.ts'
import { mirrorPaths, systemStateDir } from '../config/paths.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { makeFolder, orAbsent, syncFolder, writeFileAtomic } from '../lib/fs.ts'
import { isOnlyRoots } from '../lib/ownership.ts'
import { shellWord, type Surroundings } from '../lib/process.ts'
import type { RecordFolders } from './types.ts'
import { type ClientName, clientNames, type Machine } from './types.ts'

/** What was done to one client's files in one place, and what it takes to undo it. */
export interface ConfiguredClient {
  readonly client: ClientName
  /** `id` of the place. */
  readonly place: string
  /** `title` of the place. */
  readonly title: string
  /** What the client's adapter needs to find the place again. */
  readonly details: Readonly<Record<string, string>>
  /** The root that was given with `--root`; undefined on the machine itself. */
  readonly root: string | undefined
  /** ISO 8601. */
  readonly since: string
  readonly cache: string
  readonly registry: string | undefined
  /** Whether the mirror's CA was handed over. */
  readonly ca?: boolean
  /** The address is the user's own word (`--mirror`), and not one of this machine's mirror. */
  readonly isNamed?: boolean
  /** Whether the client goes to the origin when the mirror fails. */
  readonly fallback: boolean
  readonly files: readonly RecordedFile[]
  /** Folders that were made for them, outermost first. */
  readonly folders: readonly string[]
  /** The files are as they were before, but the running client goes on with what it has read until it is reloaded. */
  readonly undone?: boolean
}

export interface RecordedFile {
  readonly path: string
  /** What was there; undefined: nothing was. */
  readonly before:
    | { readonly backup: string; readonly mode: number; readonly uid: number; readonly gid: number }
    | undefined
  /** sha256 of what we wrote, hex; undefined: we removed it. */
  readonly written: string | undefined
  /** sha256 of what of ours it may be as well, when a change of it was cut short. */
  readonly also?: readonly string[]
}

/** A record, and whether only root can change it. */
export interface KnownRecord extends ConfiguredClient {
  readonly lockedByRoot: boolean
}

/** Which clients are configured: a file for each in `configured/`, so that two runs take nothing from each other. */
export interface ConfiguredClients {
  /** In the order in which they were configured. */
  list(): Promise<KnownRecord[]>
  /** Takes the place of the record of the same client and place. */
  put(record: ConfiguredClient): Promise<void>
  remove(record: ConfiguredClient): Promise<void>
  /** As root: moves what was recorded before there was a place for the whole machine to that place. */
  migrate(): Promise<void>
  /** Where backups for this record go. */
  backupFolder(record: Pick<ConfiguredClient, 'root' | 'details'>): string
}

/** A path alone is a state folder with no other beside it. */
export function openConfiguredClients(where: string | RecordFolders): ConfiguredClients {
  const { own, system, isRoot } = typeof where === 'string' ? { own: where, system: undefined, isRoot: false } : where
  const shared = system === own ? undefined : system

  function folderOf(record: Pick<ConfiguredClient, 'root' | 'details'>): string {
    const isShared = shared !== undefined && isRoot && (own === undefined || isSystemWide(record))
    const folder = isShared ? shared : own
    if (folder === undefined) throw new Error('There is no folder for records')
    return folder
  }

  const configured: ConfiguredClients = {
    async list() {
      const records = [
        ...(own === undefined ? [] : await readRecords(own, false)),
        ...(shared === undefined ? [] : await readRecords(shared, !isRoot)),
      ]
      return records.toSorted((one, other) => one.since.localeCompare(other.since))
    },

    async put(record) {
      const folder = folderOf(record)
      const text = `${JSON.stringify({ ...record, lockedByRoot: undefined }, null, 2)}\n`
      if (folder === shared) await writePublicRecord(folder, getRecordPath(folder, record), text)
      else await writeFileAtomic(getRecordPath(folder, record), text)
      // From before there was a place for the whole machine.
      if (folder === shared && own !== undefined) await removeRecord(own, record)
    },

    async remove(record) {
      if (own !== undefined) await removeRecord(own, record)
      if (shared !== undefined && isRoot) await removeRecord(shared, record)
    },

    async migrate() {
      if (own === undefined || shared === undefined || !isRoot) return
      for (const record of await readRecords(own, false)) if (isSystemWide(record)) await configured.put(record)
    },

    backupFolder: (record) => join(folderOf(record), 'backups'),
  }
  return configured
}

async function removeRecord(folder: string, record: ConfiguredClient): Promise<void> {
  await rm(getRecordPath(folder, record), { force: true })
  await orAbsent(() => syncFolder(join(folder, 'configured')))
}

function getRecordPath(folder: string, record: ConfiguredClient): string {
  return join(folder, 'configured', getRecordName(record))
}

/** Whether a record is about files of the whole machine, not of one user. */
function isSystemWide({ root, details }: Pick<ConfiguredClient, 'root' | 'details'>): boolean {
  return root === undefined && details['scope'] === 'system'
}

async function readRecords(folder: string, lockedByRoot: boolean): Promise<KnownRecord[]> {
  const configured = join(folder, 'configured')
  const names = (await readIfPresent(configured, () => readdir(configured))) ?? []
  const files = names.filter((name) => /^[^.].*\.json$/.test(name)).map((name) => join(configured, name))
  const records = await Promise.all(files.map(readRecord))
  return records.flatMap((record) => (record === undefined ? [] : [{ ...record, lockedByRoot }]))
}

/** Whatever the umask: other users read what root has configured. */
async function writePublicRecord(folder: string, file: string, text: string): Promise<void> {
  const configured = join(folder, 'configured')
  await makeFolder(configured)
  for (const path of [folder, configured]) await chmod(path, 0o755)
  await writeFileAtomic(file, text)
  await chmod(file, 0o644)
}

/** Another one for each client, place and root. */
function getRecordName({ client, place, root }: ConfiguredClient): string {
  // Fetched here, for a program that only asks what is configured starts sooner without it.
  const { createHash } = process.getBuiltinModule('node:crypto')
  const hash = createHash('sha256')
    .update(JSON.stringify([client, place, root]))
    .digest('hex')
  return `${client}-${hash.slice(0, 16)}.json`
}

export function isSameTarget(
  one: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
  other: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
): boolean {
  return one.client === other.client && one.place === other.place && one.root === other.root
}

/** Undefined where there is nothing. Throws MirrorError for what only another user may read. */
async function readIfPresent<T>(path: string, ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await orAbsent(ask)
  } catch (cause) {
    if (errnoOf(cause) !== 'EACCES') throw cause
    throw new MirrorError(`No permission to read ${path}, so it is not known what is configured.`, {
      hints: [`ls -ld ${path}   (whose it is)`],
      cause,
    })
  }
}

/** Undefined for one that went since it was seen. Without it an undo would be a guess: a damaged one is told, not passed over. */
async function readRecord(file: string): Promise<ConfiguredClient | undefined> {
  const text = await readIfPresent(file, () => readFile(file, 'utf8'))
  if (text === undefined) return undefined
  try {
    const record: unknown = JSON.parse(text)
    if (isRecord(record)) return record
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
  }
  throw new MirrorError(`${file} is damaged, so what was configured cannot be undone by itself.`, {
    hints: ['the backups of what was changed lie in the same state folder, in backups/'],
  })
}

function isRecord(value: unknown): value is ConfiguredClient {
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
 * Where this user finds what was configured. Root uses nothing that another user can change: a record says which file to write
 * and with what. `MIRROR_HOME` is the root of everything, the records of the whole machine included, where it is root's.
 * Throws MirrorError for a system folder that is not root's.
 */
export async function findRecordFolders(surroundings: Surroundings): Promise<RecordFolders> {
  const { stateDir } = mirrorPaths(surroundings)
  const system = systemStateDir(surroundings.platform)
  const isRoot = process.geteuid?.() === 0
  if (!isRoot || system === undefined) return { own: stateDir, system, isRoot: false }
  const own = isOnlyRoots(stateDir) ? stateDir : undefined
  if (own !== undefined && surroundings.env['MIRROR_HOME']) return { own, system: undefined, isRoot }
  if (isOnlyRoots(system)) return { own, system, isRoot }
  throw new MirrorError(`${system} can be changed by others than root, so what is recorded there is not used.`, {
    hints: [`ls -ld ${system}   (it has to be root's, with mode 755)`, `chown -R root: ${system}; chmod 755 ${system}`],
  })
}

/** What was configured on this machine. */
export function openMachineRecords({ records, stateDir }: Pick<Machine, 'records' | 'stateDir'>): ConfiguredClients {
  return openConfiguredClients(records ?? stateDir)
}

type TargetIdentity = Pick<ConfiguredClient, 'client' | 'root' | 'details'> & { readonly lockedByRoot?: boolean }

/** The arguments that configure, or with `--undo` take back, this place and no other of the same client. */
export function configureArguments({ client, root, details }: TargetIdentity, ...more: string[]): string[] {
  const said = { root, scope: details['scope'], cluster: details['cluster'], file: details['file'] }
  const flags = Object.entries(said).flatMap(([name, value]) => (value === undefined ? [] : [`--${name}`, value]))
  return ['configure', client, ...flags, ...more]
}

/** The same to be typed: through sudo for what only root can change, and under sudo by the user who has called it. */
export async function configureCommand(machine: Machine, place: TargetIdentity, ...more: string[]): Promise<string> {
  const args = configureArguments(place, ...more)
  const isRoots = place.lockedByRoot === true || (isSystemWide(place) && process.geteuid?.() === 0)
  return isRoots ? rootCommand(machine, args) : ['mirror', ...args.map(shellWord)].join(' ')
}
