import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { findPackageRoot } from '../../../src/lib/fs.ts'
import { computeDigest, getDigestAlgorithm, parseDigest } from '../../../src/oci/reference.ts'
import { get, type Answer } from '../get.ts'
import { type MirrorProcess, type MirrorProcessOptions, startMirrorProcess } from '../mirror-process.ts'
import { temporaryHome } from '../mirror.ts'
import { webToken } from '../web-token.ts'

/** The stores of a release that kept one file for each repository. README.md there says how they were made. */
export const fixture = join(findPackageRoot(), 'test', 'fixtures', 'store-v1')
export const storeNames = ['cache', 'registry'] as const
export const program = join(findPackageRoot(), 'bin', 'run.js')

/** The account that the mirror uses at private.example; `nobody` has no credential. */
export type Account = 'alice' | 'bob' | 'nobody'
export const accounts: readonly Account[] = ['alice', 'bob', 'nobody']

/** What the release answered about its stores. */
export interface Expected {
  readonly release: string
  /** The output of commands, by arguments, while no mirror ran. */
  readonly commands: Readonly<Record<string, unknown>>
  /** Answers of the cache, by account and request, while it was offline. */
  readonly cache: Readonly<Record<Account, Readonly<Record<string, ExpectedAnswer>>>>
  /** Answers of the registry by request. */
  readonly registry: Readonly<Record<string, ExpectedAnswer>>
  readonly status: StatusCounts
}

export interface ExpectedAnswer {
  readonly status: number
  /** Content-Type of a manifest or a list. */
  readonly type?: string | undefined
  /** Docker-Content-Digest of what was asked for by another name. */
  readonly digest?: string | undefined
  readonly length?: number | undefined
  /** `intact` for bytes that have the digest of their header; the JSON of a list, or the codes of errors. */
  readonly body?: unknown
  readonly link?: string | undefined
  readonly filters?: string | undefined
  readonly cacheStatus?: string | undefined
}

export interface StatusCounts {
  readonly storage: { readonly bytes: number; readonly blobs: number; readonly manifests: number }
  readonly registry: {
    readonly repositories: number
    readonly tags: number
    readonly manifests: number
    readonly bytes: number
  }
}

export async function readExpected(): Promise<Expected> {
  return JSON.parse(await readFile(join(fixture, 'expected.json'), 'utf8')) as Expected
}

/** Creates the home of a stopped mirror with copies of the stores of these names; removes it after the test. */
export async function homeWithStores(names: readonly string[] = storeNames): Promise<string> {
  const home = await temporaryHome()
  for (const name of names) await cp(join(fixture, name), join(home, 'data', name), { recursive: true })
  await writeIdentityKey(home)
  return home
}

/** Writes the key of the identities in the fixture. It protects nothing: no secret of the fixture is one. */
export async function writeIdentityKey(home: string): Promise<void> {
  await mkdir(join(home, 'state'), { recursive: true })
  await writeFile(join(home, 'state', 'identity-key'), `${'0123456789abcdef'.repeat(4)}\n`, { mode: 0o600 })
}

/** A password of tokens.example that names its account: the identity stays the same when the time changes. */
export function accountToken(expiry: number): string {
  return webToken({ iss: 'tokens.example', sub: 'robot', exp: expiry })
}

/** Settings of the upstreams; `urls` holds their addresses. */
export function upstreamsFor(account: Account, urls: Readonly<Record<string, string>>): MirrorProcessOptions {
  const secret = (username: string, variable: string) => ({ username, passwordEnv: variable })
  return {
    registry: true,
    upstreams: {
      'docker.io': urls['docker.io']!,
      'private.example': {
        url: urls['private.example']!,
        credentials: account === 'nobody' ? 'anonymous' : secret(account, 'PRIVATE_PASSWORD'),
      },
      'tokens.example': { url: urls['tokens.example']!, credentials: secret('robot', 'TOKENS_PASSWORD') },
    },
    env: { PRIVATE_PASSWORD: `password of ${account}`, TOKENS_PASSWORD: accountToken(account === 'alice' ? 1 : 2) },
  }
}

/** Starts a mirror that asks no upstream, until the test ends. */
export function startOffline(
  home: string,
  account: Account = 'alice',
  options: Partial<MirrorProcessOptions> = {},
): Promise<MirrorProcess> {
  const nowhere = 'http://127.0.0.1:1'
  const urls = { 'docker.io': nowhere, 'private.example': nowhere, 'tokens.example': nowhere }
  return startMirrorProcess({ ...upstreamsFor(account, urls), cache: { offline: true }, home, ...options })
}

/** Stops a mirror as `mirror down` does. */
export async function stop(mirror: MirrorProcess): Promise<void> {
  mirror.kill('SIGTERM')
  await mirror.ended
}

/** Sends a request such as `GET /v2/app/tags/list` and returns the parts of the answer that stay the same. */
export async function ask(url: string, request: string): Promise<ExpectedAnswer> {
  const [method, path] = request.split(' ') as [string, string]
  const answer = await get(url, path, { method })
  const { status, headers } = answer
  const digest = headers['docker-content-digest'] as string | undefined
  return JSON.parse(
    JSON.stringify({
      status,
      type: status === 200 && !path.includes('/blobs/') ? headers['content-type'] : undefined,
      digest: digest !== undefined && path.endsWith(digest) ? undefined : digest,
      ...(method !== 'HEAD' ? { body: bodyOf(path, answer) } : status === 200 && { length: answerLength(answer) }),
      link: headers['link'],
      filters: headers['oci-filters-applied'],
      cacheStatus: headers['cache-status'],
    }),
  ) as ExpectedAnswer
}

const answerLength = ({ headers }: Answer) => Number(headers['content-length'])

function bodyOf(path: string, { status, headers, body }: Answer): unknown {
  if (status !== 200)
    return (JSON.parse(body.toString()) as { errors: { code: string }[] }).errors.map(({ code }) => code)
  if (/tags\/list|referrers|_catalog/.test(path)) return JSON.parse(body.toString())
  const digest = parseDigest(String(headers['docker-content-digest']))
  return digest && computeDigest(body, getDigestAlgorithm(digest)) === digest ? 'intact' : 'damaged'
}

/** Sends each request; returns the answers by request. */
export async function askAll(url: string, requests: Iterable<string>): Promise<Record<string, ExpectedAnswer>> {
  const answers: Record<string, ExpectedAnswer> = {}
  for (const request of requests) answers[request] = await ask(url, request)
  return answers
}

export async function readCounts(mirror: MirrorProcess): Promise<StatusCounts> {
  const { storage, registry } = await mirror.status()
  const { bytes, blobs, manifests } = storage
  const { repositories, tags, manifests: pushed, bytes: pushedBytes } = registry
  return {
    storage: { bytes, blobs, manifests },
    registry: { repositories, tags, manifests: pushed, bytes: pushedBytes },
  }
}

/** Lists the commands whose output the fixture has. The limits make each eviction depend on the recorded times of use. */
export const commands = [
  'cache ls',
  'cache verify --dry-run',
  'cache verify',
  'cache prune --dry-run',
  'MIRROR_CACHE_MAX_SIZE=3KiB cache prune --dry-run',
  'MIRROR_CACHE_MAX_AGE=24h cache prune --dry-run',
  'registry ls',
  'registry gc --dry-run',
  'registry gc --dry-run --untagged',
  'registry gc --dry-run --untagged --grace 0s',
]

export interface CommandResult {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
}

/** Runs a command, which may begin with variables, on the mirror of this home. */
export async function run(
  home: string,
  command: string,
  { path = program, uid }: { path?: string; uid?: number } = {},
): Promise<CommandResult> {
  const words = command.split(' ')
  const variables = words.filter((word) => word.startsWith('MIRROR_')).map((word) => word.split('='))
  const args = words.filter((word) => !word.startsWith('MIRROR_'))
  const child = spawn(process.execPath, [path, ...args, '--json'], {
    cwd: home,
    env: {
      // Root would say that others can change folders of the PATH of npx.
      PATH: '/usr/bin:/bin',
      HOME: home,
      MIRROR_HOME: home,
      MIRROR_CACHE_MIN_FREE: '0',
      ...Object.fromEntries(variables),
    },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(uid === undefined ? {} : { uid, gid: uid }),
  })
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  const [status] = (await once(child, 'close')) as [number | null]
  return { status, stdout, stderr }
}

/** Runs a command that must succeed; returns its JSON. */
export async function runJson(home: string, command: string, path?: string): Promise<unknown> {
  const { status, stdout, stderr } = await run(home, command, path === undefined ? {} : { path })
  if (status !== 0) throw new Error(`mirror ${command} ended with ${status}: ${stderr}`)
  return JSON.parse(stdout)
}
