import { readFile, readdir, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { errnoOf } from '../../lib/errors.ts'
import { handedFolderOf } from '../../daemon/container/spec.ts'
import type { Endpoints } from '../../admin/state.ts'
import { readHanded, type HandedCredential } from '../../upstream/credentials.ts'

/** What a mirror in a container is told about the world outside of it. */
export interface Outside {
  /** What the container keeps when it is restarted. */
  readonly instance: string
  /** Where clients reach it; undefined as long as nobody has said so. */
  endpoints(): Promise<Endpoints | undefined>
  /** By registry: the credentials that were handed over. */
  credentials(): Promise<Record<string, HandedCredential>>
  /** Removes what was handed to other instances, which do not come back. */
  forgetOthers(): Promise<void>
}

/** Names in the folder of what is handed over. */
export const handedFiles = {
  config: 'mirror.yaml',
  /** The last of them: whoever has it is the mirror, and its predecessor will not be put back. */
  endpoints: 'endpoints.json',
  credentials: 'docker/config.json',
} as const

/** Undefined for a mirror that is not in a container of ours. */
export function outsideOf(
  env: Readonly<Record<string, string | undefined>>,
  folderOf: (instance: string) => string = handedFolderOf,
): Outside | undefined {
  const instance = env['MIRROR_INSTANCE']
  if (!instance) return undefined
  const folder = folderOf(instance)
  return {
    instance,
    async endpoints() {
      try {
        return JSON.parse(await readFile(join(folder, handedFiles.endpoints), 'utf8')) as Endpoints
      } catch (error) {
        if (error instanceof SyntaxError || errnoOf(error) === 'ENOENT') return undefined
        throw error
      }
    },
    credentials: () => readHanded(join(folder, handedFiles.credentials), Date.now()),
    async forgetOthers() {
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
