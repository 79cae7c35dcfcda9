import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { stopChild } from './daemon.ts'
import type { NetworkNamespace } from './network-namespace.ts'

export interface UpstreamRequest {
  method: string
  path: string
}

export interface Upstream {
  /** The URL inside the namespace. */
  url: string
  /** Returns the requests so far, also after `disconnect`. */
  requests(): Promise<UpstreamRequest[]>
  /** Closes the port, so that no client can connect any more. */
  disconnect(): Promise<void>
  close(): Promise<void>
}

/** Starts a registry that serves the content folder (see writeContent) at a random port of the namespace. */
export async function startUpstream(
  namespace: NetworkNamespace,
  contentFolder: string,
  address = '127.0.0.1',
): Promise<Upstream> {
  const program = fileURLToPath(new URL('upstream.mjs', import.meta.url))
  const [file, ...args] = namespace.enter([process.execPath, program, contentFolder, address])
  const child = spawn(file!, args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const answer = async (question?: string) => {
    const answered = once(child, 'message')
    if (question !== undefined) child.send(question)
    return (await answered)[0] as unknown
  }
  const { port } = (await answer()) as { port: number }
  return {
    url: `http://${address}:${port}`,
    requests: async () => (await answer('requests')) as UpstreamRequest[],
    disconnect: async () => void (await answer('close')),
    close: () => stopChild(child),
  }
}
