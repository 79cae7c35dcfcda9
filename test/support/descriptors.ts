import { readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** Returns a wrapper that runs a program with at most so many open files. */
export function withDescriptors(limit: number): readonly string[] {
  return ['sh', '-c', `ulimit -n ${limit}; exec "$@"`, 'sh']
}

/** Counts the descriptors that a process has open. */
export function descriptorsOf(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length
}

/** Opens connections that never send a request, and replaces those that the server ends, until the test ends. */
export async function holdIdle(
  baseUrl: string,
  count: number,
): Promise<{ release(): void; readonly open: number; readonly ended: number }> {
  const { hostname, port } = new URL(baseUrl)
  const sockets = new Set<Socket>()
  let isOver = false
  let ended = 0
  const add = () => {
    if (isOver) return
    const begun = performance.now()
    const socket = connect(Number(port), hostname)
    sockets.add(socket)
    // Discard the server's response, because the socket closes only after all of it is read.
    socket.resume()
    socket.on('error', () => {})
    socket.once('close', () => {
      sockets.delete(socket)
      if (!isOver) ended += 1
      // Limit the rate: about 500 refused connections a second, which one machine can handle.
      const isRefused = performance.now() - begun < 5000
      if (!isOver) setTimeout(add, (isRefused ? Math.max(1, count / 300) : 1) * (200 + Math.random() * 800))
    })
  }
  for (let at = 0; at < count; at++) {
    add()
    if (at % 100 === 99) await new Promise(setImmediate)
  }
  const release = () => {
    isOver = true
    for (const socket of sockets) socket.destroy()
  }
  onTestFinished(release)
  return {
    release,
    get open() {
      return [...sockets].filter(({ pending, destroyed }) => !pending && !destroyed).length
    },
    /** Number of connections that the server has ended. */
    get ended() {
      return ended
    },
  }
}
