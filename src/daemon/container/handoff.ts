import { readdir, readFile, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import type { Endpoints } from '../../admin/state.ts'
import { describeFailure, errnoOf } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import { every } from '../../lib/time.ts'
import { type ExportedCredential, readExportedCredentials } from '../../upstream/credentials.ts'
import { exportFolderOf } from './spec.ts'

/** What a mirror in a container is told about the world outside of it. */
export interface HostHandoff {
  /** What the container keeps when it is restarted. */
  readonly instance: string
  /** Where clients reach it; undefined as long as nobody has said so. */
  endpoints(): Promise<Endpoints | undefined>
  /** By registry: the credentials that were handed over. */
  credentials(): Promise<Record<string, ExportedCredential>>
  /** Removes what was handed to other instances, which do not come back. */
  removeOthers(): Promise<void>
}

/** Names in the folder of what is handed over. */
export const exportedFileNames = {
  config: 'mirror.yaml',
  /** The last of them: whoever has it is the mirror, and its predecessor will not be put back. */
  endpoints: 'endpoints.json',
  credentials: 'docker/config.json',
} as const

/** Undefined for a mirror that is not in a container of ours. */
export function openHostHandoff(
  env: Readonly<Record<string, string | undefined>>,
  folderOf: (instance: string) => string = exportFolderOf,
): HostHandoff | undefined {
  const instance = env['MIRROR_INSTANCE']
  if (!instance) return undefined
  const folder = folderOf(instance)
  return {
    instance,
    async endpoints() {
      try {
        return JSON.parse(await readFile(join(folder, exportedFileNames.endpoints), 'utf8')) as Endpoints
      } catch (error) {
        if (error instanceof SyntaxError || errnoOf(error) === 'ENOENT') return undefined
        throw error
      }
    },
    credentials: () => readExportedCredentials(join(folder, exportedFileNames.credentials), Date.now()),
    async removeOthers() {
      const others = (await namesIn(dirname(folder))).filter((name) => name !== basename(folder))
      for (const name of others) await rm(join(dirname(folder), name), { recursive: true, force: true })
    },
  }
}

async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  }
}

const lookMs = 1000

/**
 * Removes what was handed to the mirrors before this one, credentials and keys among it, as soon as this one is there to stay;
 * until then one of them may be put back. Returns how to stop looking.
 */
export function removePredecessorExports(handoff: HostHandoff, logger: Logger, everyMs = lookMs): () => void {
  const look = async () => {
    if ((await handoff.endpoints()) === undefined) return
    stop()
    await handoff.removeOthers()
  }
  const stop = every(everyMs, look, (error) =>
    logger.warn({ error: describeFailure(error) }, 'what was handed to the mirror before this one cannot be removed'),
  )
  return stop
}
