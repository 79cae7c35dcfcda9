import { readFile, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { syncFolder, writeFileAtomic } from '../lib/atomic-file.ts'
import { MirrorError, errnoOf } from '../lib/errors.ts'
import { clientNames, type ClientName } from './client-config.ts'

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
  /** Whether the client goes to the origin when the mirror fails. */
  readonly fallback: boolean
  readonly files: readonly ConfiguredFile[]
  /** Folders that were made for them, outermost first. */
  readonly folders: readonly string[]
}

export interface ConfiguredFile {
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

/** Which clients are configured: a file for each in `configured/` of the state folder, so that two runs take nothing from each other. */
export interface ConfiguredClients {
  /** In the order in which they were configured. */
  list(): Promise<ConfiguredClient[]>
  /** Takes the place of the record of the same client and place. */
  put(record: ConfiguredClient): Promise<void>
  remove(record: ConfiguredClient): Promise<void>
}

export function openConfiguredClients(stateDir: string): ConfiguredClients {
  const folder = join(stateDir, 'configured')
  const fileOf = (record: ConfiguredClient) => join(folder, nameOf(record))
  return {
    async list() {
      const names = (await orAbsent(() => readdir(folder))) ?? []
      const files = names.filter((name) => /^[^.].*\.json$/.test(name)).map((name) => join(folder, name))
      const records = await Promise.all(files.map(readRecord))
      return records
        .filter((record) => record !== undefined)
        .toSorted((one, other) => one.since.localeCompare(other.since))
    },
    put: (record) => writeFileAtomic(fileOf(record), `${JSON.stringify(record, null, 2)}\n`),
    async remove(record) {
      await rm(fileOf(record), { force: true })
      await orAbsent(() => syncFolder(folder))
    },
  }
}

/** Another one for each client, place and root. */
function nameOf({ client, place, root }: ConfiguredClient): string {
  // Fetched here, for a program that only asks what is configured starts sooner without it.
  const { createHash } = process.getBuiltinModule('node:crypto')
  const hash = createHash('sha256')
    .update(JSON.stringify([client, place, root]))
    .digest('hex')
  return `${client}-${hash.slice(0, 16)}.json`
}

export function isSamePlace(
  one: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
  other: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
): boolean {
  return one.client === other.client && one.place === other.place && one.root === other.root
}

async function orAbsent<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/** Undefined for one that went since it was seen. Without it an undo would be a guess: a damaged one is told, not passed over. */
async function readRecord(file: string): Promise<ConfiguredClient | undefined> {
  const text = await orAbsent(() => readFile(file, 'utf8'))
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
