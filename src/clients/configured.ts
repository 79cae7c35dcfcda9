import { join } from 'node:path'
import { readFile } from 'node:fs/promises'
import { writeFileAtomic } from '../lib/atomic-file.ts'
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

/** Which clients are configured: `configured.json` in the state folder. */
export interface ConfiguredClients {
  list(): Promise<ConfiguredClient[]>
  /** Takes the place of the record of the same client and place. */
  put(record: ConfiguredClient): Promise<void>
  remove(record: ConfiguredClient): Promise<void>
}

export function openConfiguredClients(stateDir: string): ConfiguredClients {
  const file = join(stateDir, 'configured.json')
  const save = (records: ConfiguredClient[]) =>
    writeFileAtomic(file, `${JSON.stringify({ clients: records }, null, 2)}\n`)
  const list = async () => parse(await readText(file), file)
  return {
    list,
    async put(record) {
      const others = (await list()).filter((other) => !isSamePlace(other, record))
      await save([...others, record])
    },
    async remove(record) {
      await save((await list()).filter((other) => !isSamePlace(other, record)))
    },
  }
}

export function isSamePlace(
  one: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
  other: Pick<ConfiguredClient, 'client' | 'place' | 'root'>,
): boolean {
  return one.client === other.client && one.place === other.place && one.root === other.root
}

async function readText(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/** Without this record an undo would be a guess: a damaged one is told, not passed over. */
function parse(text: string | undefined, file: string): ConfiguredClient[] {
  if (text === undefined) return []
  try {
    const value = JSON.parse(text) as { clients?: unknown }
    if (Array.isArray(value.clients) && value.clients.every(isRecord)) return value.clients
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
  }
  throw new MirrorError(`${file} is damaged, so what was configured cannot be undone by itself.`, {
    hints: ['the backups of what was changed lie beside it, in backups/'],
  })
}

function isRecord(value: unknown): value is ConfiguredClient {
  if (typeof value !== 'object' || value === null) return false
  const { client, place, files, folders, details } = value as Record<string, unknown>
  const known: readonly unknown[] = clientNames
  return (
    known.includes(client) &&
    typeof place === 'string' &&
    typeof details === 'object' &&
    details !== null &&
    Array.isArray(files) &&
    Array.isArray(folders)
  )
}
