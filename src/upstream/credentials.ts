import { readFile } from 'node:fs/promises'
import { getErrno } from '../lib/errors.ts'
import { isObject, parseObject } from '../lib/json.ts'
import type { RunCommand } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { toCanonicalRegistry } from '../oci/reference.ts'
import { createDockerCredentials, hubServer, toDockerServer, expiresKey } from './docker-credentials.ts'
import {
  type Credential,
  toCredential,
  type Credentials,
  isSameCredential,
  createUnusableCredentialError,
} from './identity.ts'

const hourMs = 3_600_000

/** Lifetimes of the passwords that credential helpers issue, by the user name that marks them. */
const lifetimesMs: Readonly<Record<string, number>> = {
  // Amazon ECR
  AWS: 12 * hourMs,
  // Google Artifact Registry, an access token
  oauth2accesstoken: hourMs,
  // Azure Container Registry, a refresh token
  '00000000-0000-0000-0000-000000000000': 3 * hourMs,
}

const tokenKeys = { 'identity-token': 'identitytoken', 'registry-token': 'registrytoken' } as const

export type CredentialsSource =
  | { readonly from: 'docker-config' }
  | { readonly from: 'anonymous' }
  | { readonly from: 'password-file'; readonly username: string; readonly passwordFile: string }
  | { readonly from: 'password-env'; readonly username: string; readonly passwordEnv: string }

interface CredentialsOptions {
  readonly host: string
  readonly source: CredentialsSource
  /** Locates Docker's config.json; see `dockerConfigPath`. */
  readonly dockerConfig: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly runCommand: RunCommand
  readonly clock: Clock
}

/**
 * Returns the host whose credential an upstream receives. A company's cache that stores a registry's images below a prefix has its own
 * accounts, and must not receive the registry's credential.
 */
export function getCredentialHost(
  host: string,
  { url, prefix }: { url?: string; prefix?: string | undefined },
): string {
  return url === undefined || prefix === undefined ? host : toCanonicalRegistry(new URL(url).host)
}

/** Opens the source of one upstream's credential. */
export function createCredentials(options: CredentialsOptions): Credentials {
  const { source, host } = options
  switch (source.from) {
    case 'docker-config':
      return createDockerCredentials(options)
    case 'anonymous':
      return { find: async () => undefined, renew: async () => undefined }
    case 'password-file':
      return readEachTime(async () => toCredential(source.username, await readPassword(host, source.passwordFile)))
    case 'password-env':
      return readEachTime(async () => {
        const password = options.env[source.passwordEnv]
        if (password) return toCredential(source.username, password)
        throw createUnusableCredentialError(host, `the environment variable ${source.passwordEnv} is not set`)
      })
  }
}

function readEachTime(find: () => Promise<Credential>): Credentials {
  return {
    find,
    async renew(refused) {
      const credential = await find()
      return isSameCredential(credential, refused) ? undefined : credential
    },
  }
}

async function readPassword(host: string, path: string): Promise<string> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw createUnusableCredentialError(host, `the file ${path} cannot be read (${getErrno(error)})`)
  }
  const password = text.replace(/\r?\n$/, '')
  if (password === '') throw createUnusableCredentialError(host, `the file ${path} is empty`)
  return password
}

/** Holds the lifetime of a credential that was exported to the container. */
export interface ExportedCredential {
  /** ISO 8601; absent for a credential that does not expire. */
  readonly expires?: string
  readonly state: 'valid' | 'expired'
}

/** Renders credentials by registry in the form of Docker's config.json, each with its expiry time. `now`: wall clock, ms. */
export function renderExportedCredentials(credentials: ReadonlyMap<string, Credential>, now: number): string {
  const auths = [...credentials].map(([host, credential]) => {
    const life = credential.kind === 'password' ? lifetimesMs[credential.username] : undefined
    const secret =
      credential.kind === 'password'
        ? { auth: Buffer.from(`${credential.username}:${credential.password}`).toString('base64') }
        : { [tokenKeys[credential.kind]]: credential.token }
    const until = life === undefined ? {} : { [expiresKey]: new Date(now + life).toISOString() }
    return [toDockerServer(host), { ...secret, ...until }]
  })
  return `${JSON.stringify({ auths: Object.fromEntries(auths) }, null, 2)}\n`
}

/** Reads such a file without its secrets; a missing or damaged file has no entries. `now`: wall clock, ms. */
export async function readExportedCredentials(path: string, now: number): Promise<Record<string, ExportedCredential>> {
  const { auths } = parseObject(await readIfPresent(path)) ?? {}
  if (!isObject(auths)) return {}
  const entries = Object.entries(auths).map(([server, entry]): [string, ExportedCredential] => {
    const host = server === hubServer ? 'docker.io' : server
    const expires = isObject(entry) ? entry[expiresKey] : undefined
    if (typeof expires !== 'string') return [host, { state: 'valid' }]
    return [host, { expires, state: Date.parse(expires) <= now ? 'expired' : 'valid' }]
  })
  return Object.fromEntries(entries)
}

async function readIfPresent(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return ''
    throw error
  }
}
