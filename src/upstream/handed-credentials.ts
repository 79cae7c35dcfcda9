import { readFile } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import { isObject, parseObject } from '../lib/json.ts'
import type { Credential } from './credential.ts'
import { hubServer, serverOf } from './docker-auth.ts'
import { untilKey } from './docker-config.ts'

/** How long a credential that was handed over is good for. */
export interface HandedCredential {
  /** ISO 8601; absent for one that does not die by itself. */
  readonly expires?: string
  readonly state: 'valid' | 'expired'
}

const hour = 3_600_000

/** What registries' helpers hand out dies by itself; they mark it by the user name. */
const lives: Readonly<Record<string, number>> = {
  // Amazon ECR
  AWS: 12 * hour,
  // Google Artifact Registry, an access token
  oauth2accesstoken: hour,
  // Azure Container Registry, a refresh token
  '00000000-0000-0000-0000-000000000000': 3 * hour,
}

const tokenKeys = { 'identity-token': 'identitytoken', 'registry-token': 'registrytoken' } as const

/** Credentials by registry as a config.json of Docker's form, each with the time it dies at. `now`: wall clock, ms. */
export function renderHanded(credentials: ReadonlyMap<string, Credential>, now: number): string {
  const auths = [...credentials].map(([host, credential]) => {
    const life = credential.kind === 'password' ? lives[credential.username] : undefined
    const secret =
      credential.kind === 'password'
        ? { auth: Buffer.from(`${credential.username}:${credential.password}`).toString('base64') }
        : { [tokenKeys[credential.kind]]: credential.token }
    const until = life === undefined ? {} : { [untilKey]: new Date(now + life).toISOString() }
    return [serverOf(host), { ...secret, ...until }]
  })
  return `${JSON.stringify({ auths: Object.fromEntries(auths) }, null, 2)}\n`
}

/** What such a file holds, without the secrets; a missing or damaged one holds nothing. */
export async function readHanded(path: string, now: number): Promise<Record<string, HandedCredential>> {
  const { auths } = parseObject(await readOrNothing(path)) ?? {}
  if (!isObject(auths)) return {}
  const entries = Object.entries(auths).map(([server, entry]): [string, HandedCredential] => {
    const host = server === hubServer ? 'docker.io' : server
    const expires = isObject(entry) ? entry[untilKey] : undefined
    if (typeof expires !== 'string') return [host, { state: 'valid' }]
    return [host, { expires, state: Date.parse(expires) <= now ? 'expired' : 'valid' }]
  })
  return Object.fromEntries(entries)
}

async function readOrNothing(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return ''
    throw error
  }
}
