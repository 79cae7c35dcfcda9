import type { AddressInfo, Socket } from 'node:net'
import { createClientForMirror, createTunnel } from '../access.ts'
import { type AdminTunnel, toReachableUrl } from '../client.ts'
import { findRunningMirror } from '../find-mirror.ts'
import type { CommandEnvironment } from '../../lib/process.ts'

/**
 * Limits the connections that are forwarded at a time; a browser opens at most six. For each, the engine starts a program in the container,
 * which takes up to 8 MB of its memory.
 */
const maxConnections = 12

/** Describes an address at which a browser of this machine reaches the dashboard. */
export interface DashboardLink {
  /** Looks like `http://127.0.0.1:5056/`. */
  readonly url: string
  /** Begins a session, once. */
  readonly ticket: string
  readonly expiresInSeconds: number
  /** Names the engine of another machine, to which this process forwards connections until it ends. */
  readonly forwardedTo?: string
  /** Ends the forwarding. */
  close(): void
}

/** Creates a link to the dashboard of the running mirror; undefined when none runs. Throws a MirrorError when it does not answer. */
export async function createDashboardLink(surroundings: CommandEnvironment): Promise<DashboardLink | undefined> {
  const found = await findRunningMirror(surroundings)
  if (found === undefined) return undefined
  const { ticket, expiresInSeconds } = await createClientForMirror(found).createTicket()
  const tunnel = createTunnel(found.running)
  const [adminUrl = ''] = found.running.endpoints.admin
  if (!tunnel) return { url: new URL('/', toReachableUrl(adminUrl)).href, ticket, expiresInSeconds, close: () => {} }
  const { port, close } = await forwardConnections(tunnel)
  return { url: `http://127.0.0.1:${port}/`, ticket, expiresInSeconds, forwardedTo: tunnel.name, close }
}

/** Listens on a free loopback port, and forwards each connection through the tunnel. */
export async function forwardConnections(
  tunnel: AdminTunnel,
): Promise<{ readonly port: number; readonly close: () => void }> {
  const { createServer } = process.getBuiltinModule('node:net')
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('close', () => sockets.delete(socket))
    // Ends a connection that the engine refuses: the browser says that the page is not reachable.
    connectThrough(tunnel, socket).catch(() => socket.destroy())
  })
  server.maxConnections = maxConnections
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', resolve)
  })
  const close = () => {
    server.close()
    for (const socket of sockets) socket.destroy()
  }
  return { port: (server.address() as AddressInfo).port, close }
}

async function connectThrough(tunnel: AdminTunnel, socket: Socket): Promise<void> {
  const remote = await tunnel.connect()
  remote.on('error', () => socket.destroy())
  remote.once('close', () => socket.destroy())
  socket.once('close', () => remote.destroy())
  if (socket.destroyed) remote.destroy()
  else socket.pipe(remote).pipe(socket)
}
