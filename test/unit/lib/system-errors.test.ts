import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { Agent, type IncomingMessage, request } from 'node:http'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { pathToFileURL } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createSystemError } from '../../../src/lib/errors.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { findProcessFaultCode, ProcessHealth } from '../../../src/lib/system-errors.ts'
import { type Clock, systemClock } from '../../../src/lib/time.ts'
import type { DigestAlgorithm } from '../../../src/oci/reference.ts'
import { isHealthy } from '../../../src/admin/client.ts'
import type { AdminApi } from '../../../src/admin/api.ts'
import { createAdminHandler } from '../../../src/admin/handler.ts'
import { createHostGuard } from '../../../src/server/request-guard.ts'
import { createHashPool } from '../../../src/store/hashing.ts'
import { TransientError } from '../../../src/upstream/retry.ts'
import { get } from '../../support/get.ts'
import { startMirrorProcess } from '../../support/mirror-process.ts'
import { temporaryHome } from '../../support/mirror.ts'
import { serve } from '../../support/upstream/serve.ts'

const run = promisify(execFile)

const noDescriptor = createSystemError('EMFILE', 'connect', 'connect EMFILE')
const missingModule = await import(pathToFileURL('/nowhere/undici.js').href).catch((error: unknown) => error)

/** Starts an admin listener with these troubles. It ends with the test. */
async function startAdmin(troubles: ProcessHealth): Promise<string> {
  const guard = createHostGuard([], () => {})
  const handle = createAdminHandler({
    api: {} as AdminApi,
    listTroubles: () => troubles.find(),
    guard,
    token: 't',
    instance: 'i',
    logger: silentLogger,
  })
  return (await serve(handle)).url
}

const healthOf = async (url: string) => {
  const { status, body } = await get(url, '/healthz')
  return { status, body: JSON.parse(body.toString()) as unknown }
}

describe('the health of a mirror', () => {
  test.each([
    ['no descriptor is left for a connection', noDescriptor, 'EMFILE'],
    ['a module cannot be loaded', missingModule, 'ERR_MODULE_NOT_FOUND'],
    [
      'no address of an upstream can be tried',
      new TransientError('unavailable', 503, 'no', { cause: new AggregateError([noDescriptor]) }),
      'EMFILE',
    ],
  ])('is bad, with the reason, while %s, and good after the next fetch', async (_, error, code) => {
    const troubles = new ProcessHealth(systemClock)
    const url = await startAdmin(troubles)
    troubles.watch('fetch').failed(error)
    const reasons = [`The mirror cannot send requests to upstreams: ${code}`]
    expect(await healthOf(url)).toEqual({ status: 503, body: { status: 'degraded', reasons } })
    // Checks that the mirror is still recognized, so that no second one is started.
    expect(await isHealthy(url, { instance: 'i' })).toBe(true)
    troubles.watch('fetch').worked()
    expect(await healthOf(url)).toEqual({ status: 200, body: { status: 'ok' } })
  })

  test.each(['ECONNREFUSED', 'ETIMEDOUT', 'ENOTFOUND', 'ECONNRESET'])(
    'is good while an upstream is unreachable (%s)',
    async (code) => {
      const troubles = new ProcessHealth(systemClock)
      const cause = createSystemError(code, 'connect', code)
      troubles.watch('fetch').failed(new TransientError('unavailable', 502, 'it is down', { cause }))
      expect(await healthOf(await startAdmin(troubles))).toEqual({ status: 200, body: { status: 'ok' } })
    },
  )

  test('is bad after a hashing thread has died, until another thread has finished a hash', async () => {
    const troubles = new ProcessHealth(systemClock)
    const hashes = createHashPool(2, { watcher: troubles.watch('hash') })
    onTestFinished(() => hashes.close())
    const file = await open(join(await temporaryHome(), 'file'), 'w+')
    onTestFinished(() => file.close())
    await hashes.follow('none' as DigestAlgorithm, file.fd).close()
    expect(await troubles.find()).toEqual([expect.stringContaining('cannot verify digests')])
    await hashes.follow('sha256', file.fd).digest()
    expect(await troubles.find()).toEqual([])
  })

  test.each([
    ['half a minute', 'a lack of descriptors', 'EMFILE', 30_000],
    ['five minutes', 'a module that is missing', 'ERR_MODULE_NOT_FOUND', 300_000],
  ])('is good again %s after %s', async (_time, _what, code, ms) => {
    let now = 0
    const clock: Clock = { ...systemClock, monotonic: () => now }
    const troubles = new ProcessHealth(clock)
    troubles.watch('fetch').failed(Object.assign(new Error(code), { code, syscall: 'open' }))
    now = ms - 1
    expect(await troubles.find()).toHaveLength(1)
    now = ms + 1
    expect(await troubles.find()).toEqual([])
  })
})

const prlimit = '/usr/bin/prlimit'
test.skipIf(!existsSync(prlimit))('a mirror without a free descriptor reports it until it has one again', async () => {
  const mirror = await startMirrorProcess({ upstreams: {} })
  // Opens the connection before, because a mirror without a free descriptor accepts none.
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  onTestFinished(() => agent.destroy())
  const health = async () => {
    const [answer] = (await once(request(`${mirror.adminUrl}/healthz`, { agent }).end(), 'response')) as [
      IncomingMessage,
    ]
    return JSON.parse(await text(answer)) as unknown
  }
  const limit = (files: string) => run(prlimit, ['--pid', String(mirror.pid), `--nofile=${files}`])
  expect(await health()).toEqual({ status: 'ok' })
  await limit('3:')
  const reasons = ['The mirror cannot open a file: EMFILE']
  expect(await health()).toEqual({ status: 'degraded', reasons })
  await limit('256:')
  expect(await health()).toEqual({ status: 'ok' })
})

test('ownFailureCode finds the code of a process fault in the error or in its cause', () => {
  expect(findProcessFaultCode(noDescriptor)).toBe('EMFILE')
  expect(findProcessFaultCode(new Error('a', { cause: new Error('b', { cause: missingModule }) }))).toBe(
    'ERR_MODULE_NOT_FOUND',
  )
  for (const other of [undefined, 'EMFILE', new Error('EMFILE'), createSystemError('EACCES', 'open', 'no')])
    expect(findProcessFaultCode(other)).toBeUndefined()
})
