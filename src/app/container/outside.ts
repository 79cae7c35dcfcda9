import { readFile } from 'node:fs/promises'
import { errnoOf } from '../../lib/errors.ts'
import { handedFolder } from '../../runtime/container-spec.ts'
import type { Endpoints } from '../../runtime/runtime.ts'
import { readHanded, type HandedCredential } from '../../upstream/handed-credentials.ts'

/** What a mirror in a container is told about the world outside of it. */
export interface Outside {
  /** What the container keeps when it is restarted. */
  readonly instance: string
  /** Where clients reach it; undefined as long as nobody has said so. */
  endpoints(): Promise<Endpoints | undefined>
  /** By registry: the credentials that were handed over. */
  credentials(): Promise<Record<string, HandedCredential>>
}

/** Names in the folder of what is handed over. */
export const handedFiles = {
  config: 'mirror.yaml',
  endpoints: 'endpoints.json',
  credentials: 'docker/config.json',
} as const

/** Undefined for a mirror that is not in a container of ours. */
export function outsideOf(env: Readonly<Record<string, string | undefined>>): Outside | undefined {
  const instance = env['MIRROR_INSTANCE']
  if (!instance) return undefined
  return {
    instance,
    async endpoints() {
      try {
        return JSON.parse(await readFile(`${handedFolder}/${handedFiles.endpoints}`, 'utf8')) as Endpoints
      } catch (error) {
        if (error instanceof SyntaxError || errnoOf(error) === 'ENOENT') return undefined
        throw error
      }
    },
    credentials: () => readHanded(`${handedFolder}/${handedFiles.credentials}`, Date.now()),
  }
}
