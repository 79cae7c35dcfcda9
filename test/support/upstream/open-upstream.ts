import { onTestFinished } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { createIdentify } from '../../../src/upstream/identity.ts'
import { createHttpUpstream, type HttpUpstream, type HttpUpstreamOptions } from '../../../src/upstream/http-upstream.ts'
import { UpstreamError } from '../../../src/upstream/upstream.ts'

/** Opens an upstream with short deadlines and short pauses; closes it when the test ends. */
export function openUpstream(url: string, options: Partial<HttpUpstreamOptions> = {}): HttpUpstream {
  const upstream = createHttpUpstream({
    host: 'registry.example',
    url,
    credentials: { from: 'anonymous' },
    identify: createIdentify(Buffer.from('key')),
    tokenHosts: [],
    ca: undefined,
    timeouts: { connect: 1000, headers: 2000, idle: 2000 },
    allowPrivate: true,
    env: {},
    dockerConfig: '/nonexistent/config.json',
    userAgent: 'mirror/test',
    runCommand: async () => undefined,
    logger: silentLogger,
    clock: { ...systemClock, sleep: (ms, signal) => systemClock.sleep(ms / 10, signal) },
    ...options,
  })
  onTestFinished(() => upstream.close())
  return upstream
}

/** Returns the UpstreamError with which a promise rejects. */
export async function failureOf(promise: Promise<unknown>): Promise<UpstreamError> {
  try {
    await promise
  } catch (error) {
    if (error instanceof UpstreamError) return error
    throw error
  }
  throw new Error('It did not fail.')
}

export async function readAll(body: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for await (const chunk of body) chunks.push(chunk)
  return Buffer.concat(chunks)
}

/** Creates a clock that only `pass` and `sleep` advance. */
export function fakeClock() {
  let now = 0
  return {
    wall: () => 1_800_000_000_000 + now,
    monotonic: () => now,
    sleep: async (ms: number) => void (now += ms),
    pass: (ms: number) => void (now += ms),
  }
}
