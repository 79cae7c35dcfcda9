import { readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** Runs a program with at most so many open files. */
export function withDescriptors(limit: number): readonly string[] {
  return ['sh', '-c', `ulimit -n ${limit}; exec "$@"`, 'sh']
}

/** Descriptors that a process has open. */
export function descriptorsOf(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).length
}

/** Opens connections that never send a request, and opens those that the server ends again. Ends with the test. */
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
    // The server's answer is of no interest, but its end is only seen when everything before is read.
    socket.resume()
    socket.on('error', () => {})
    socket.once('close', () => {
      sockets.delete(socket)
      if (!isOver) ended += 1
      // At a pace that one machine can keep up with: of those that are refused, some 500 a second.
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
    /** Connections that did not stay open until now. */
    get ended() {
      return ended
    },
  }
}
