import { access, readFile } from 'node:fs/promises'
import { Agent } from 'node:http'
import { isIP } from 'node:net'
import { join } from 'node:path'
import type Dockerode from 'dockerode'
import { isConnectionFailure } from '../lib/errors.ts'
import { ownFailureCode } from '../lib/system-errors.ts'
import type { Clock } from '../lib/time.ts'
import type { Docker } from '../runtime/docker.ts'
import { SshConnection } from './connection.ts'
import type { DockerEndpoint } from './endpoint.ts'

export interface DockerodeOptions {
  clock: Clock
  /** How long to wait for an engine that is not there before looking again; ms. */
  retryMs?: number
}

/** The Docker engine behind an endpoint. It need not be there: then it has no networks, and is looked for again. */
export function createDockerodeDocker(endpoint: DockerEndpoint, { clock, retryMs = 5000 }: DockerodeOptions): Docker {
  let client: Dockerode | undefined

  /** Loads the library once there is something to talk to. */
  async function connect(): Promise<Dockerode> {
    if (endpoint.kind === 'socket') await access(endpoint.path)
    client ??= await openClient(endpoint)
    return client
  }

  return {
    async ping() {
      const answer = await orAbsent(async () => (await connect()).ping())
      return answer !== undefined
    },

    async networkGateways(name) {
      const filters = { name: [name], driver: ['bridge'] }
      const networks = await orAbsent(async () => (await connect()).listNetworks({ filters }))
      const addresses = networks
        // The engine's filter matches parts of names.
        ?.filter((network) => network.Name === name)
        .flatMap((network) => network.IPAM?.Config ?? [])
        // Older engines write an IPv6 gateway with its prefix length.
        .map(({ Gateway }) => (Gateway ?? '').replace(/\/\d+$/, ''))
        .filter((address) => isIP(address) !== 0)
      return addresses && [...new Set(addresses)]
    },

    async watchNetworks(onChange, signal) {
      let seen: boolean | undefined
      while (!signal.aborted) {
        const present = await orUnasked(async () => {
          const events = await (await connect()).getEvents({ filters: { type: ['network'] }, abortSignal: signal })
          // Subscribed first, looked at afterwards: nothing that happens in between is missed.
          seen = true
          onChange()
          await untilEnd(events, onChange, signal)
          return true
        })
        if (signal.aborted) return
        if (present === undefined && seen !== false) {
          seen = false
          onChange()
        }
        await clock.sleep(retryMs, signal).catch(() => {})
      }
    },
  }
}

/** As long as Node's own agent keeps a connection that nobody uses. */
const idleMs = 5000

/** Loads the library, here and nowhere else. */
export const loadDockerode = async () => (await import('dockerode')).default

/** Opens a client of the engine at an endpoint. */
export async function openClient(endpoint: DockerEndpoint): Promise<Dockerode> {
  const Dockerode = await loadDockerode()
  if (endpoint.kind === 'socket') return new Dockerode({ socketPath: endpoint.path })
  if (endpoint.kind === 'ssh') {
    // Kept alive, for logging in costs more than a request; one that is idle keeps no command from ending.
    const kept = new Agent({ keepAlive: true, timeout: idleMs })
    const agent = Object.assign(kept, { createConnection: () => new SshConnection(endpoint) })
    const options = { host: 'docker', port: 80, protocol: 'http' as const, agent }
    return new Dockerode(options)
  }
  const { host, port, tlsFolder } = endpoint
  if (tlsFolder === undefined) return new Dockerode({ host, port, protocol: 'http' })
  const [ca, cert, key] = await Promise.all(
    ['ca.pem', 'cert.pem', 'key.pem'].map((file) => readFile(join(tlsFolder, file))),
  )
  return new Dockerode({ host, port, protocol: 'https', ca, cert, key })
}

/** Each event calls back; resolves when the engine goes away or the signal aborts. */
async function untilEnd(events: NodeJS.ReadableStream, onEvent: () => void, signal: AbortSignal): Promise<void> {
  await new Promise<void>((resolve) => {
    const stop = () => {
      signal.removeEventListener('abort', stop)
      if ('destroy' in events && typeof events.destroy === 'function') events.destroy()
      resolve()
    }
    events.on('data', onEvent)
    for (const end of ['end', 'close', 'error']) events.once(end, stop)
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
  })
}

/**
 * An engine that is not there, or does not let us in, or is just going down, is a normal state. Throws what keeps this process
 * from asking (no file descriptor, no memory), which says nothing of the engine.
 */
export async function orAbsent<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (ownFailureCode(error) !== undefined) throw error
    if (isConnectionFailure(error)) return undefined
    // The engine's own refusals, and our own wish to end.
    if (error instanceof Error && ('statusCode' in error || error.name === 'AbortError')) return undefined
    throw error
  }
}

/** The same where it is tried again in any case. */
async function orUnasked<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await orAbsent(ask)
  } catch (error) {
    if (ownFailureCode(error) === undefined) throw error
    return undefined
  }
}
