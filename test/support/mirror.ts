import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import { startMirror, type StartOptions } from '../../src/daemon/start.ts'
import { type CacheConfig, type Config, defaultConfig, type UpstreamConfig } from '../../src/config/config.ts'
import { mirrorPaths, type MirrorPaths } from '../../src/config/paths.ts'
import type { LogFields, Logger } from '../../src/lib/logger.ts'
import type { StatusReport } from '../../src/admin/api.ts'
import { type Answer, get, type GetOptions } from './get.ts'

export interface TestMirrorOptions {
  /** Upstreams by registry host: the URL of an anonymous upstream, or a URL with other settings. */
  readonly upstreams?: Readonly<Record<string, string | ({ readonly url: string } & Partial<UpstreamConfig>)>>
  /** Settings that differ from the defaults for tests: short timeouts, tags never fresh. */
  readonly cache?: Partial<Omit<CacheConfig, 'timeouts'>> & { readonly timeouts?: Partial<CacheConfig['timeouts']> }
  readonly allowedHosts?: string[]
  /** The address of the admin listener; default: 127.0.0.1. */
  readonly adminHost?: string
  /** Paths of PEM files. */
  readonly tls?: { readonly cert: string; readonly key: string }
  /** The home of an earlier mirror; default: a new one, removed after the test. */
  readonly home?: string
  /** The folder of the dashboard's files; default: the one of the last build. */
  readonly pageFolder?: string
  /** Runs the checks of `mirror doctor`; default: the mirror cannot. */
  readonly runDoctor?: StartOptions['runDoctor']
  /** Variables that differ from those of the test. */
  readonly env?: Readonly<Record<string, string>>
  /** Lists the configured clients; default: the mirror does not know them. */
  readonly listConfigured?: StartOptions['listConfigured']
}

export interface TestMirror {
  readonly url: string
  /** The URLs of all listeners of the cache. */
  readonly urls: readonly string[]
  readonly adminUrl: string
  readonly home: string
  readonly paths: MirrorPaths
  /** Every logged line, at every level. */
  readonly log: readonly string[]
  get(path: string, options?: GetOptions): Promise<Answer>
  status(): Promise<StatusReport>
  /** Resolves when so many blobs, including manifests, are published, which is shortly after a client has the last byte. */
  untilStored(blobs: number): Promise<void>
  /** Sends a change to the admin listener, with the token. */
  post(path: string, body: unknown): Promise<Answer>
  close(): Promise<void>
}

const timeouts = { connect: 500, headers: 1000, idle: 1000, revalidate: 500 }

/** Starts the real mirror in this process, on free ports, until the test ends. */
export async function startTestMirror(options: TestMirrorOptions = {}): Promise<TestMirror> {
  const home = options.home ?? (await temporaryHome())
  const paths = mirrorPaths({ platform: process.platform, env: { MIRROR_HOME: home }, homedir: home, cwd: home })
  const log: string[] = []
  const running = await startMirror(testConfig(options), {
    home: paths,
    version: '0.0.0-test',
    runtime: 'process',
    logger: recordingLogger(log),
    ...(options.pageFolder === undefined ? {} : { pageFolder: options.pageFolder }),
    ...(options.env && { env: { ...process.env, ...options.env } }),
    runDoctor: options.runDoctor,
    listConfigured: options.listConfigured,
  })
  let closing: Promise<void> | undefined
  const close = () => (closing ??= running.close())
  onTestFinished(close)

  const [url, adminUrl] = [running.endpoints.cache[0]!, running.endpoints.admin[0]!]
  const readToken = async () => ({ authorization: `Bearer ${(await readFile(paths.tokenFile, 'utf8')).trim()}` })
  const status = async () => {
    const { body } = await get(adminUrl, '/api/status', { headers: await readToken() })
    return JSON.parse(body.toString()) as StatusReport
  }
  return {
    url,
    urls: running.endpoints.cache,
    adminUrl,
    home,
    paths,
    log,
    get: (path, init) => get(url, path, init),
    status,
    async untilStored(blobs) {
      await expect.poll(async () => (await status()).storage.blobs).toBe(blobs)
    },
    async post(path, body) {
      const headers = { ...(await readToken()), 'content-type': 'application/json' }
      return get(adminUrl, path, { method: 'POST', headers, body: JSON.stringify(body) })
    },
    close,
  }
}

/** Creates a folder for a mirror; removes it after the test. */
export async function temporaryHome(): Promise<string> {
  const home = await mkdtemp(join(tmpdir(), 'mirror-test-'))
  onTestFinished(() => rm(home, { recursive: true, force: true }))
  return home
}

function testConfig({
  upstreams = {},
  cache = {},
  allowedHosts = [],
  adminHost = '127.0.0.1',
  tls,
}: TestMirrorOptions): Config {
  const defaults = defaultConfig()
  const { timeouts: changed, ...settings } = cache
  return {
    ...defaults,
    cache: {
      ...defaults.cache,
      listen: [{ host: '127.0.0.1', port: 0 }],
      minFree: 0,
      tagFreshness: 0,
      ...settings,
      timeouts: { ...timeouts, ...changed },
    },
    registry: { ...defaults.registry, enabled: false },
    admin: { listen: [{ host: adminHost, port: 0 }] },
    networks: [],
    allowedHosts,
    tls: tls && { ...tls, ca: undefined },
    upstreams: Object.fromEntries(
      Object.entries(upstreams).map(([host, upstream]) => [
        host,
        {
          credentials: { from: 'anonymous' as const },
          tokenHosts: [],
          ca: undefined,
          tagFreshness: undefined,
          ...(typeof upstream === 'string' ? { url: upstream } : upstream),
        },
      ]),
    ),
  }
}

function recordingLogger(log: string[]): Logger {
  const at = (level: string) => (fields: LogFields, message: string) =>
    void log.push(`${level} ${message} ${JSON.stringify(fields)}`)
  return { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
}
