import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Clock } from '../lib/clock.ts'
import { errnoOf } from '../lib/errors.ts'
import { credentialOf, unusableCredential, type Credential } from './credential.ts'

/** What Docker's config.json says about one registry. */
export interface DockerEntry {
  /** `docker-credential-<helper>` has it; asked about `server`. */
  readonly helper: { readonly name: string; readonly server: string } | undefined
  /** The credential that stands in the file itself. */
  readonly inline: Credential | undefined
  /** Wall clock, ms: from then on it is as good as none. Only files that mirrors hand over say so. */
  readonly inlineUntil?: number | undefined
}

/** Reads a registry's entry; looks at the file at most once a second. */
export interface DockerConfig {
  /** The same object as long as the file does not change. Throws an UpstreamError (denied) for a file that cannot be used. */
  entry(): Promise<DockerEntry>
}

/** Our own member of an entry of `auths`; Docker ignores it. ISO 8601. */
export const untilKey = 'mirrorUntil'

const lookAgainMs = 1000
const hubNames = ['index.docker.io', 'docker.io', 'registry-1.docker.io']
export const hubServer = 'https://index.docker.io/v1/'

/** Where Docker keeps its config.json. */
export function dockerConfigPath(env: Readonly<Record<string, string | undefined>>): string {
  return join(env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json')
}

/** Opens the config.json at `path` for one registry; a missing file is an empty one. */
export function openDockerConfig(path: string, host: string, clock: Clock): DockerConfig {
  let entry = noEntry
  let version: string | undefined
  let check: Promise<DockerEntry> | undefined
  let checkedAt = 0

  async function reload(): Promise<DockerEntry> {
    try {
      const found = await versionOf(path)
      if (found !== version) {
        entry = found === undefined ? noEntry : parseDockerConfig(await readFile(path, 'utf8'), host)
        version = found
      }
      return entry
    } catch (error) {
      const code = errnoOf(error)
      throw code === undefined ? error : unusableCredential(host, `${path} cannot be read (${code})`)
    }
  }

  return {
    entry() {
      if (!check || clock.monotonic() - checkedAt >= lookAgainMs) {
        checkedAt = clock.monotonic()
        check = reload()
      }
      return check
    },
  }
}

const noEntry: DockerEntry = { helper: undefined, inline: undefined }

/** Reads the text of a config.json. Throws an UpstreamError (denied) that quotes nothing of it. */
function parseDockerConfig(text: string, host: string): DockerEntry {
  const config = asObject(parseJson(text, host))
  const names = host === 'docker.io' ? hubNames : [host]
  const server = host === 'docker.io' ? hubServer : host
  const perHost = lookUp(asObject(config['credHelpers']), names)
  const name = [perHost?.value, config['credsStore']].find((name) => typeof name === 'string' && name !== '')
  const auth = lookUp(asObject(config['auths']), names)
  return {
    helper: typeof name === 'string' ? { name: checkedHelper(name, host), server } : undefined,
    inline: auth && inlineCredential(asObject(auth.value), host),
    inlineUntil: auth && timeOf(asObject(auth.value)[untilKey]),
  }
}

async function versionOf(path: string): Promise<string | undefined> {
  try {
    // What is handed over comes out of an archive: always of the same time, mostly of the same size, and in the same inode.
    const { mtimeMs, ctimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${ctimeMs} ${size} ${ino}`
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/** The value under any spelling of the registry: with or without a scheme, a trailing slash, `/v1/` or `/v2/`. */
function lookUp(section: Record<string, unknown>, names: readonly string[]): { readonly value: unknown } | undefined {
  const entries = Object.entries(section).map(([key, value]) => [bareHost(key), value] as const)
  for (const name of names) {
    const found = entries.find(([key]) => key === name)
    if (found) return { value: found[1] }
  }
  return undefined
}

function bareHost(key: string): string {
  return key
    .toLowerCase()
    .replace(/^https?:\/\//, '')
    .replace(/\/+$/, '')
    .replace(/\/v[12]$/, '')
}

function inlineCredential(auth: Record<string, unknown>, host: string): Credential | undefined {
  if (isText(auth['identitytoken'])) return { kind: 'identity-token', token: auth['identitytoken'] }
  let { username, password } = auth
  if (isText(auth['auth'])) {
    const pair = Buffer.from(auth['auth'], 'base64').toString('utf8')
    const colon = pair.indexOf(':')
    if (colon < 1) throw broken(host, 'its auth entry is not base64 of user:password')
    username = pair.slice(0, colon)
    password = pair.slice(colon + 1).replace(/\0+$/, '')
  }
  return isText(username) && isText(password) ? credentialOf(username, password) : undefined
}

function timeOf(value: unknown): number | undefined {
  const time = typeof value === 'string' ? Date.parse(value) : Number.NaN
  return Number.isNaN(time) ? undefined : time
}

function checkedHelper(name: string, host: string): string {
  if (!/^[\w.-]+$/.test(name)) throw broken(host, 'it names a credential helper that cannot be a program')
  return name
}

function parseJson(text: string, host: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // The parser's own message quotes the text.
    throw broken(host, 'it is not valid JSON')
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
}

const broken = (host: string, why: string) => unusableCredential(host, `Docker's config.json was read, but ${why}`)
const isText = (value: unknown): value is string => typeof value === 'string' && value !== ''
