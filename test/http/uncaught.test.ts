import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'

/** Starts a server in which each of two signals causes an uncaught failure. */
async function startFaulty() {
  const home = await temporaryHome()
  const faults = join(home, 'faults.cjs')
  await writeFile(
    faults,
    `process.on('SIGUSR2', () => void Promise.reject(new TypeError('a fault in one task')))
     process.on('SIGHUP', () => { throw new TypeError('a fault in the state') })
     process.on('SIGCONT', () => { throw Object.assign(new Error('accept EMFILE'), { code: 'EMFILE', syscall: 'accept' }) })`,
  )
  const env = { NODE_OPTIONS: `--require ${faults}` }
  return startMirrorProcess({ upstreams: {}, home, env })
}

test('an unhandled rejection and a system error in a callback are logged and counted, and the server continues', async () => {
  const mirror = await startFaulty()
  mirror.kill('SIGUSR2')
  await expect.poll(() => mirror.log()).toMatch(/a fault in one task.*"count":1/)
  mirror.kill('SIGCONT')
  await expect.poll(() => mirror.log()).toMatch(/accept EMFILE.*"count":2/)
  expect((await mirror.get('/v2/')).status).toBe(200)
  mirror.kill('SIGTERM')
  expect(await mirror.ended).toBe(0)
})

test('an uncaught exception ends the server with exit code 1, and its stack is in the log', async () => {
  const mirror = await startFaulty()
  mirror.kill('SIGHUP')
  expect(await mirror.ended).toBe(1)
  expect(mirror.log()).toMatch(/TypeError: a fault in the state\\n +at .*the mirror ends/)
})
