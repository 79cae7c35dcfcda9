import { rm } from 'node:fs/promises'
import { makeDemoImage } from '../app/demo/make-image.ts'
import { type Pull, pullImage } from '../app/demo/pull-image.ts'
import { serveDemoUpstream } from '../app/demo/serve-upstream.ts'
import { defaultConfig } from '../config/config.ts'
import { mirrorPaths } from '../config/paths.ts'
import { startMirror } from '../daemon/start.ts'
import { temporaryFolder } from '../lib/fs.ts'
import { silentLogger } from '../lib/logger.ts'

export interface DemoPull extends Pull {
  /** What it took from the upstream. */
  readonly upstreamRequests: number
  readonly upstreamBytes: number
}

export interface DemoStory {
  /** Of the network between the mirror and its upstream: ms, and bytes/s a connection. */
  readonly network: { readonly latency: number; readonly bandwidth: number }
  readonly image: string
  readonly upstream: string
  readonly mirror: string
  readonly first: DemoPull
  readonly second: DemoPull
  /** With the upstream switched off. */
  readonly offline: DemoPull
}

/** What has happened so far, for a teller. */
export type DemoStep =
  | { readonly kind: 'set-up'; readonly upstream: string; readonly mirror: string; readonly image: string }
  | { readonly kind: 'pulled'; readonly which: 'first' | 'second' | 'offline'; readonly pull: DemoPull }

const registry = 'registry.example'
const repository = 'demo/app'
const tag = '1'
const network = { latency: 40, bandwidth: 12 * 1024 ** 2 }

/** The whole story on one machine: an upstream made on the spot, a pull that misses, one that hits, one without upstream. */
export async function runDemo(tell: (step: DemoStep) => void): Promise<DemoStory> {
  const home = await temporaryFolder('mirror-demo-')
  const upstream = await serveDemoUpstream(makeDemoImage(), network)
  try {
    const config = defaultConfig()
    config.cache.listen = [{ host: '127.0.0.1', port: 0 }]
    config.admin.listen = [{ host: '127.0.0.1', port: 0 }]
    config.registry.enabled = false
    config.networks = []
    config.upstreams = {
      [registry]: {
        url: upstream.url,
        credentials: { from: 'anonymous' },
        tokenHosts: [],
        ca: undefined,
        tagFreshness: undefined,
      },
    }
    const paths = mirrorPaths({ platform: process.platform, env: { MIRROR_HOME: home }, homedir: home, cwd: home })
    // No proxy, which may run on this machine, has anything to do with it.
    const env = { ...process.env, no_proxy: '*' }
    const options = { home: paths, version: 'demo', runtime: 'process', logger: silentLogger, env } as const
    const mirror = await startMirror(config, options)
    try {
      const base = mirror.endpoints.cache[0]!
      const image = `${registry}/${repository}:${tag}`
      tell({ kind: 'set-up', upstream: upstream.url, mirror: base, image })
      const pull = async (which: 'first' | 'second' | 'offline'): Promise<DemoPull> => {
        upstream.takeCounts()
        const pulled = await pullImage(base, `${registry}/${repository}`, tag)
        const { requests: upstreamRequests, bytes: upstreamBytes } = upstream.takeCounts()
        const measured = { ...pulled, upstreamRequests, upstreamBytes }
        tell({ kind: 'pulled', which, pull: measured })
        return measured
      }
      const first = await pull('first')
      const second = await pull('second')
      await upstream.close()
      const offline = await pull('offline')
      return { network, image, upstream: upstream.url, mirror: base, first, second, offline }
    } finally {
      await mirror.close()
    }
  } finally {
    await upstream.close()
    await rm(home, { recursive: true, force: true })
  }
}
