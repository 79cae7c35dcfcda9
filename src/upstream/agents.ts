import type { Dispatcher } from 'undici'
import type { AddressGuard } from './address-guard.ts'
import { resumePausedAtEnd } from './paused-connections.ts'
import type { Proxies, Proxy } from './proxy.ts'
import { createSocksConnector } from './socks-connector.ts'

/** Blobs have connections of their own, so that a question never waits behind layers. */
export type Lane = 'questions' | 'blobs'

/** The connections of one upstream, kept and used again: direct ones, and those through proxies. */
export interface Agents {
  /** Where a request is sent, and the proxy's name when it goes through one. */
  find(lane: Lane, url: URL): Promise<{ readonly agent: Dispatcher; readonly via: string | undefined }>
  /** Ends every connection. */
  close(): Promise<void>
}

export interface AgentsOptions {
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number }
  readonly guard: AddressGuard
  readonly proxies: Proxies
  /** PEM certificates to trust instead of the usual ones. */
  readonly certificates: string[] | undefined
  /** Whether connections are kept for the next request; there have to be descriptors for them. */
  readonly keepAlive?: boolean | undefined
}

/** More than a pull uses with all that is fetched ahead, so that nothing a client asks for waits behind what it did not. */
export const connectionsPerOrigin = 48
const keepAliveMs = 15_000

/** Loads the HTTP client; a server does so before it says that it is ready. */
export const loadUndici = async () => (await import('undici')).default

export function createAgents({ timeouts, guard, proxies, certificates, keepAlive = true }: AgentsOptions): Agents {
  const agents = new Map<string, Promise<Dispatcher>>()

  async function createAgent(proxy: Proxy | undefined): Promise<Dispatcher> {
    const { Agent, ProxyAgent, buildConnector } = await loadUndici()
    resumePausedAtEnd()
    const connect = { timeout: timeouts.connect, ...(certificates && { ca: certificates }) }
    const pool = { connections: connectionsPerOrigin, keepAliveTimeout: keepAliveMs, pipelining: keepAlive ? 1 : 0 }
    if (!proxy) return new Agent({ ...pool, connect: { ...connect, lookup: guard.lookup } })
    // Names that the proxy resolves cannot be judged here, only literal addresses.
    if (proxy.protocol === 'socks4' || proxy.protocol === 'socks5') {
      const secure = buildConnector(connect)
      return new Agent({ ...pool, connect: createSocksConnector(proxy, { timeout: timeouts.connect, guard, secure }) })
    }
    const { username, password } = proxy.credential ?? {}
    const pair = Buffer.from(`${username}:${password}`).toString('base64')
    return new ProxyAgent({
      ...pool,
      uri: proxy.name,
      ...(proxy.credential && { token: `Basic ${pair}` }),
      // A proxy is asked in the plain way for http, for many allow CONNECT to port 443 only.
      proxyTunnel: false,
      requestTls: connect,
      proxyTls: connect,
    })
  }

  return {
    async find(lane, url) {
      const proxy = proxies.find(url)
      const key = `${lane} ${proxy?.name ?? ''}`
      const agent = agents.get(key) ?? createAgent(proxy)
      agents.set(key, agent)
      try {
        return { agent: await agent, via: proxy?.name }
      } catch (error) {
        // The next request tries again.
        agents.delete(key)
        throw error
      }
    },
    async close() {
      await Promise.all([...agents.values()].map(async (agent) => (await agent).destroy()))
    },
  }
}
