import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { getErrno } from '../lib/errors.ts'
import { isObject, parseObject } from '../lib/json.ts'
import type { CommandResult, RunCommand } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import {
  type Credential,
  toCredential,
  type Credentials,
  isSameCredential,
  createUnusableCredentialError,
} from './identity.ts'

const pollMs = 1000
const noEntry: DockerAuth = { helper: undefined, inline: undefined }
/** Sets the time for which a helper's result is kept: its passwords live for hours (ECR: 12 h), and each call costs a process. */
const keepMs = 10 * 60_000
/** Limits the age of a result that is used while the helper runs again: another user may have logged in since. */
const maxAgeMs = 2 * keepMs
/** Sets the time for which a helper is not run again after it failed, or after the upstream refused its credential. */
const backoffMs = 5000
const timeoutMs = 15_000
/** Limits the characters of an answer; no credential takes more. */
const maxAnswerBytes = 256 * 1024
/** Lists messages of the helpers' library, which are safe to quote. */
const quotableMessages = ['no credentials server URL', 'no credentials username']
/** Lists the names that other programs use for Docker Hub in config.json. */
const hubNames = ['docker.io', 'index.docker.io', 'registry-1.docker.io']

/**
 * Finds the credential that Docker would use: from DOCKER_AUTH_CONFIG, the registry's helper, the credential store, or config.json
 * itself.
 */
export function createDockerCredentials(options: {
  readonly host: string
  readonly dockerConfig: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly runCommand: RunCommand
  readonly clock: Clock
}): Credentials {
  const { host, clock, runCommand } = options
  const config = openDockerConfig(options.dockerConfig, host, clock)
  const fromVariable = parseAuthVariable(options.env[dockerAuthVariable] ?? '')?.get(toDockerServer(host))
  let run: HelperRun | undefined
  /** Holds the last result of a helper. */
  let lastResult:
    | { readonly entry: DockerAuth; readonly credential: Credential | undefined; readonly askedAt: number }
    | undefined

  function getHelperCredential(
    entry: DockerAuth,
    helper: NonNullable<DockerAuth['helper']>,
  ): Promise<Credential | undefined> {
    if (!run || run.entry !== entry || clock.monotonic() >= run.goodUntil) run = startRun(entry, helper)
    // A helper that runs again after ten minutes delays no request.
    const isRecent = lastResult?.entry === entry && clock.monotonic() - lastResult.askedAt < maxAgeMs
    if (lastResult && isRecent && !run.isSettled) return Promise.resolve(lastResult.credential)
    return run.result
  }

  function startRun(entry: DockerAuth, helper: NonNullable<DockerAuth['helper']>): HelperRun {
    const startedAt = clock.monotonic()
    const started: HelperRun = {
      entry,
      result: askHelper(helper, host, runCommand),
      startedAt,
      isSettled: false,
      goodUntil: startedAt + keepMs,
    }
    void recordResult(started)
    return started
  }

  async function recordResult(started: HelperRun): Promise<void> {
    try {
      const credential = await started.result
      if (run === started) lastResult = { entry: started.entry, credential, askedAt: started.startedAt }
    } catch {
      // The caller that awaits the result receives the error.
      if (run === started) lastResult = undefined
      started.goodUntil = clock.monotonic() + backoffMs
    } finally {
      started.isSettled = true
    }
  }

  async function find(): Promise<Credential | undefined> {
    if (fromVariable) return fromVariable
    const entry = await config.entry()
    // A helper cannot return a registry token: Docker takes it from the file even where there is a helper.
    if (entry.helper && entry.inline?.kind !== 'registry-token') return getHelperCredential(entry, entry.helper)
    const isOver = entry.inlineExpiresAt !== undefined && entry.inlineExpiresAt <= clock.wall()
    return isOver ? undefined : entry.inline
  }

  return {
    find,
    async renew(refused) {
      lastResult = undefined
      if (run && clock.monotonic() - run.startedAt >= backoffMs) run = undefined
      const credential = await find()
      return credential && isSameCredential(credential, refused) ? undefined : credential
    },
  }
}

/** Is Docker Hub's name in Docker's config.json, and to credential helpers. */
export const hubServer = 'https://index.docker.io/v1/'

/** Names the environment variable with credentials in the form of config.json's `auths`. */
export const dockerAuthVariable = 'DOCKER_AUTH_CONFIG'

/** Is the mirror's own member in an entry of `auths`, which Docker ignores. ISO 8601. */
export const expiresKey = 'mirrorUntil'

/** Returns the path of Docker's config.json. */
export function getDockerConfigPath(env: Readonly<Record<string, string | undefined>>): string {
  return join(env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json')
}

/**
 * Parses the credentials in the variable DOCKER_AUTH_CONFIG, which take precedence over all others (Docker 28.3). Undefined for a text
 * that is anything but `{"auths": {"<registry>": {"auth": "…"}}}`: Docker ignores it.
 */
export function parseAuthVariable(text: string): ReadonlyMap<string, Credential> | undefined {
  if (text.trim() === '') return new Map()
  const json = parseObject(text)
  if (!json || Object.keys(json).some((key) => key.toLowerCase() !== 'auths')) return undefined
  const auths = getMember(json, 'auths') ?? {}
  if (!isObject(auths)) return undefined
  const credentials = new Map<string, Credential>()
  for (const [server, entry] of Object.entries(auths)) {
    if (!isObject(entry) || Object.keys(entry).some((key) => key.toLowerCase() !== 'auth')) return undefined
    const auth = getMember(entry, 'auth')
    const pair = typeof auth === 'string' ? parsePair(auth) : undefined
    if (!pair) return undefined
    credentials.set(server, { kind: 'password', username: pair[0], password: pair[1] })
  }
  return credentials
}

/** Returns the name under which Docker stores a registry's credential. */
export function toDockerServer(host: string): string {
  return host === 'docker.io' ? hubServer : host
}

/** Returns the host, with its port, of a key of `auths`: `https://registry.example:5000/v2/`, `registry.example/team`. */
export function parseAuthHost(key: string): string {
  const [, scheme, authority = ''] = /^([a-z][a-z0-9+.-]*:\/\/)?([^/]*)/i.exec(key)!
  if (scheme === undefined) return authority
  const host = authority.replace(/[?#].*$/, '').replace(/^.*@/, '')
  const bare = /^\[([^\]]*)\]$/.exec(host)?.[1]
  if (bare !== undefined) return bare
  // Matches an IPv6 address without brackets; its last part counts as a port.
  const loose = /^([^[]*:[^[]*):(\d+)$/.exec(host)
  return loose ? `[${loose[1]}]:${loose[2]}` : host
}

interface HelperRun {
  readonly entry: DockerAuth
  readonly result: Promise<Credential | undefined>
  readonly startedAt: number
  isSettled: boolean
  /** Monotonic ms. */
  goodUntil: number
}

/**
 * Runs `docker-credential-<name> get` for a server; undefined when the helper has no credential for it. Throws an UpstreamError that
 * names the helper and quotes nothing of its output that could be a secret.
 * https://github.com/docker/docker-credential-helpers#development
 */
async function askHelper(
  { name, server, key }: NonNullable<DockerAuth['helper']>,
  host: string,
  runCommand: RunCommand,
): Promise<Credential | undefined> {
  const program = `docker-credential-${name}`
  const named = `${program}, which ${key} in Docker's config.json names,`
  const result = await runCommand(program, ['get'], { input: server, timeoutMs })
  if (!result)
    throw createUnusableCredentialError(host, `${named} is not installed, or the program that runs it is missing`, {
      in: 'missing-helper',
      program,
      key,
    })
  const failed = { in: 'failed-helper', program, key } as const
  if (result.exitCode !== 0) {
    if (/credentials not found/i.test(result.stdout + result.stderr)) return undefined
    throw createUnusableCredentialError(host, `${named} ${describeExit(result)}`, failed)
  }
  const answer = parseFirstObject(result.stdout.slice(0, maxAnswerBytes))
  const [username, secret] = answer ? [getMember(answer, 'Username') ?? '', getMember(answer, 'Secret') ?? ''] : []
  // Some helpers print empty members when they have no credential.
  if (username === '' && secret === '') return undefined
  if (typeof username === 'string' && username !== '' && typeof secret === 'string')
    return toCredential(username, secret)
  throw createUnusableCredentialError(host, `${named} did not print a credential`, failed)
}

function describeExit({ exitCode, stdout, stderr }: CommandResult): string {
  const said = quotableMessages.find((words) => stdout.trim() === words)
  if (exitCode !== undefined) return `failed with exit code ${exitCode}${said === undefined ? '' : ` (${said})`}`
  const refusal = stdout === '' ? /^spawn\b.* (E[A-Z0-9]+)$/.exec(stderr.trim())?.[1] : undefined
  return refusal === undefined ? 'did not finish' : `cannot be started (${refusal})`
}

/** Parses the JSON object at the start of a text: Docker ignores the rest. */
function parseFirstObject(text: string): Record<string, unknown> | undefined {
  for (let end = text.indexOf('}'); end !== -1; end = text.indexOf('}', end + 1)) {
    const object = parseObject(text.slice(0, end + 1))
    if (object) return object
  }
  return undefined
}

/** Describes the entry of one registry in Docker's config.json. */
interface DockerAuth {
  /**
   * Names the helper `docker-credential-<name>`, called with `server`. `key`: the setting that names it, `credHelpers."ghcr.io"`.
   */
  readonly helper: { readonly name: string; readonly server: string; readonly key: string } | undefined
  /** Holds the credential in the file itself. Docker ignores it where there is a helper. */
  readonly inline: Credential | undefined
  /** Holds the inline credential's expiry, wall clock ms. Only exported files have one. */
  readonly inlineExpiresAt?: number | undefined
}

/** Opens the config.json at `path` for one registry. Checks it for changes at most once a second. A missing file counts as empty. */
function openDockerConfig(path: string, host: string, clock: Clock) {
  let entry = noEntry
  let version: string | undefined
  let check: Promise<DockerAuth> | undefined
  let checkedAt = 0

  async function reload(): Promise<DockerAuth> {
    try {
      const found = await getFileVersion(path)
      if (found !== version) {
        entry = found === undefined ? noEntry : parseDockerConfig(await readFile(path, 'utf8'), host)
        version = found
      }
      return entry
    } catch (error) {
      const code = getErrno(error)
      if (code === undefined) throw error
      throw createUnusableCredentialError(host, `${path} cannot be read (${code})`, { in: 'unreadable-config' })
    }
  }

  return {
    /**
     * Reads the registry's entry. Returns the same object until the file changes. Throws an UpstreamError (unavailable) for a file that
     * cannot be used.
     */
    entry(): Promise<DockerAuth> {
      if (!check || clock.monotonic() - checkedAt >= pollMs) {
        checkedAt = clock.monotonic()
        check = reload()
      }
      return check
    },
  }
}

/**
 * Parses a config.json by Docker's rules: an entry of `credHelpers` decides alone, and an empty one means the file itself; without
 * an entry `credsStore` decides, then the file. Throws an UpstreamError that quotes nothing of the text.
 * https://github.com/docker/cli/blob/master/cli/config/configfile/file.go
 */
function parseDockerConfig(text: string, host: string): DockerAuth {
  const config = text.trim() === '' ? {} : asObject(parseJson(text, host))
  const auth = findAuth(asObject(getMember(config, 'auths')), host)
  const inline = parseAuthEntry(asObject(auth))
  const helper = findHelper(config, host)
  if (inline === 'broken' && !helper)
    throw createUnusableConfigError(host, 'its auth entry is not base64 of user:password')
  return {
    helper,
    inline: inline === 'broken' ? undefined : inline,
    inlineExpiresAt: parseTime(asObject(auth)[expiresKey]),
  }
}

function findHelper(config: Record<string, unknown>, host: string): DockerAuth['helper'] {
  const server = toDockerServer(host)
  const [perRegistry, store] = [asObject(getMember(config, 'credHelpers')), getMember(config, 'credsStore')]
  // Docker knows one name of Docker Hub here, podman knows more: the others count where Docker would find nothing.
  const names = [server, ...(store ? [] : ['docker.io', 'index.docker.io'].filter(() => host === 'docker.io'))]
  const named = names.find((name) => Object.hasOwn(perRegistry, name))
  const name = named === undefined ? store : perRegistry[named]
  if (typeof name !== 'string' || name === '') return undefined
  const key = named === undefined ? 'credsStore' : `credHelpers."${named}"`
  return { name: checkHelperName(name, host), server, key }
}

async function getFileVersion(path: string): Promise<string | undefined> {
  try {
    // An exported file comes out of an archive: always with the same mtime, mostly with the same size and inode.
    const { mtimeMs, ctimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${ctimeMs} ${size} ${ino}`
  } catch (error) {
    if (getErrno(error) === 'ENOENT' || getErrno(error) === 'ENOTDIR') return undefined
    throw error
  }
}

function parseTime(value: unknown): number | undefined {
  const time = typeof value === 'string' ? Date.parse(value) : Number.NaN
  return Number.isNaN(time) ? undefined : time
}

function checkHelperName(name: string, host: string): string {
  if (!/^[\w.-]+$/.test(name))
    throw createUnusableConfigError(host, 'it names a credential helper that cannot be a program')
  return name
}

function parseJson(text: string, host: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // The parser's own message quotes the text.
    throw createUnusableConfigError(host, 'it is not valid JSON')
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {}
}

const createUnusableConfigError = (host: string, why: string) =>
  createUnusableCredentialError(host, `Docker's config.json was read, but ${why}`, { in: 'config' })

/** Returns a member whatever the case of its name, as Docker reads its files. The keys of maps are case-sensitive. */
function getMember(object: Readonly<Record<string, unknown>>, name: string): unknown {
  if (Object.hasOwn(object, name)) return object[name]
  const other = Object.keys(object).find((key) => key.toLowerCase() === name.toLowerCase())
  return other === undefined ? undefined : object[other]
}

/**
 * Finds a registry's entry in `auths`: under its name, otherwise under one of its addresses. Of several addresses, the one nearest to
 * the bare name counts. https://github.com/docker/cli/blob/master/cli/config/credentials/file_store.go
 */
function findAuth(auths: Readonly<Record<string, unknown>>, host: string): unknown {
  const server = toDockerServer(host)
  if (Object.hasOwn(auths, server)) return auths[server]
  const names = host === 'docker.io' ? hubNames : [host]
  const found = Object.keys(auths).flatMap((key) => {
    const name = parseAuthHost(key)
    const at = names.findIndex((each) => each.toLowerCase() === name.toLowerCase())
    const distance = at * 4 + (hasPath(key) ? 2 : 0) + (name === names[at] ? 0 : 1)
    return at === -1 ? [] : [{ key, distance }]
  })
  const [nearest] = found.toSorted((a, b) => a.distance - b.distance)
  return nearest && auths[nearest.key]
}

function hasPath(key: string): boolean {
  return /^\/+(?!v[12]\/*$)[^/]/.test(key.replace(/^[a-z][a-z0-9+.-]*:\/\//i, '').replace(/^[^/]*/, ''))
}

/** Returns the credential in an entry of `auths`, if it has one; `broken` for one that Docker refuses. */
function parseAuthEntry(entry: Readonly<Record<string, unknown>>): Credential | 'broken' | undefined {
  const [registryToken, identityToken, auth] = ['registrytoken', 'identitytoken', 'auth'].map((name) =>
    getMember(entry, name),
  )
  const pair = isText(auth) ? parsePair(auth) : [getMember(entry, 'username'), getMember(entry, 'password') ?? '']
  if (pair === undefined) return 'broken'
  if (isText(registryToken)) return { kind: 'registry-token', token: registryToken }
  if (isText(identityToken)) return { kind: 'identity-token', token: identityToken }
  const [username, password] = pair
  return isText(username) && typeof password === 'string' ? toCredential(username, password) : undefined
}

/** Parses `base64(user:password)`. The password may contain colons, and old versions of Docker pad it with NUL. */
function parsePair(auth: string): [string, string] | undefined {
  const pair = Buffer.from(auth, 'base64').toString('utf8')
  const colon = pair.indexOf(':')
  if (colon < 1) return undefined
  return [pair.slice(0, colon), pair.slice(colon + 1).replaceAll(/^\0+|\0+$/g, '')]
}

const isText = (value: unknown): value is string => typeof value === 'string' && value !== ''
