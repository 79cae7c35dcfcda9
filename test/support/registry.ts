import { readFile } from 'node:fs/promises'
import { expect, onTestFinished } from 'vitest'
import { startMirror } from '../../src/daemon/start.ts'
import { type Config, defaultConfig } from '../../src/config/config.ts'
import { mirrorPaths } from '../../src/config/paths.ts'
import type { Logger } from '../../src/lib/logger.ts'
import type { Digest } from '../../src/oci/reference.ts'
import type { StatusReport } from '../../src/admin/api.ts'
import { type Answer, get, type GetOptions } from './get.ts'
import type { TestImage } from './images.ts'
import { temporaryHome } from './mirror.ts'
import { pushBlob, pushImage, putManifest } from './push.ts'

export interface TestRegistryOptions {
  readonly registry?: Partial<Config['registry']>
  readonly minFree?: number
  /** Maximum time without a byte of a body, ms. */
  readonly idle?: number
  /** The home of an earlier registry; default: a new one, removed after the test. */
  readonly home?: string
}

export interface TestRegistry {
  readonly url: string
  readonly adminUrl: string
  readonly home: string
  /** Every logged line. */
  readonly log: readonly string[]
  ask(method: string, path: string, options?: Omit<GetOptions, 'method'>): Promise<Answer>
  get(path: string, headers?: Record<string, string>): Promise<Answer>
  /** Starts an upload and returns its location. */
  begin(repository: string, query?: string): Promise<string>
  /** Pushes a blob in one request. */
  pushBlob(repository: string, bytes: Buffer, digest?: Digest): Promise<Digest>
  pushManifest(repository: string, reference: string, image: Pick<TestImage, 'bytes' | 'mediaType'>): Promise<Answer>
  /** Pushes the blobs, the children and the manifest itself. */
  push(repository: string, reference: string, image: TestImage): Promise<Answer>
  status(): Promise<StatusReport>
  /** Sends a change to the admin listener, with the token. */
  post(path: string, body: unknown): Promise<Answer>
  close(): Promise<void>
}

/** Starts the real mirror with its registry in this process, on free ports, until the test ends. */
export async function startTestRegistry(options: TestRegistryOptions = {}): Promise<TestRegistry> {
  const home = options.home ?? (await temporaryHome())
  const paths = mirrorPaths({ platform: process.platform, env: { MIRROR_HOME: home }, homedir: home, cwd: home })
  const log: string[] = []
  const at = (level: string) => (fields: object, message: string) =>
    void log.push(`${level} ${message} ${JSON.stringify(fields)}`)
  const logger: Logger = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
  const running = await startMirror(testConfig(options), {
    home: paths,
    version: '0.0.0-test',
    runtime: 'process',
    logger,
  })
  let closing: Promise<void> | undefined
  const close = () => (closing ??= running.close())
  onTestFinished(close)
  const [url, adminUrl] = [running.endpoints.registry[0]!, running.endpoints.admin[0]!]

  const ask: TestRegistry['ask'] = (method, path, init) => get(url, path, { ...init, method })
  return {
    url,
    adminUrl,
    home,
    log,
    ask,
    get: (path, headers = {}) => ask('GET', path, { headers }),
    async begin(repository, query = '') {
      const answer = await ask('POST', `/v2/${repository}/blobs/uploads/${query}`)
      expect(answer.status).toBe(202)
      return answer.headers.location!
    },
    pushBlob: (...blob) => pushBlob(url, ...blob),
    pushManifest: (...manifest) => putManifest(url, ...manifest),
    push: (...image) => pushImage(url, ...image),
    status: async () => JSON.parse((await get(adminUrl, '/api/status')).body.toString()) as StatusReport,
    async post(path, body) {
      const token = (await readFile(paths.tokenFile, 'utf8')).trim()
      const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
      return get(adminUrl, path, { method: 'POST', headers, body: JSON.stringify(body) })
    },
    close,
  }
}

/** Parses the JSON of a response as the type that the caller expects. */
export function jsonOf<T = unknown>({ body }: Answer): T extends object ? T : unknown {
  return JSON.parse(body.toString())
}

function testConfig({ registry, minFree = 0, idle = 1000 }: TestRegistryOptions): Config {
  const defaults = defaultConfig()
  const listen = [{ host: '127.0.0.1', port: 0 }]
  const { timeouts } = defaults.cache
  return {
    ...defaults,
    cache: { ...defaults.cache, listen, minFree, timeouts: { ...timeouts, idle } },
    registry: { ...defaults.registry, listen, ...registry },
    admin: { listen },
    networks: [],
  }
}
