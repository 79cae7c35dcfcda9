import { writeFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { hash } from 'bcryptjs'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { createBasicAuth } from '../../../src/server/basic-auth.ts'
import { temporaryHome } from '../../support/mirror.ts'

const minutes = 60_000

/** Opens a password file with a clock; `find` tells a compared from a remembered password. */
async function open() {
  const path = join(await temporaryHome(), 'htpasswd')
  await writeFile(path, `dev:${await hash('right', 4)}\nslow:${await hash('other', 11)}\n`)
  let now = 0
  const clock = { ...systemClock, monotonic: () => now }
  const auth = await createBasicAuth(path, { logger: silentLogger, clock })
  onTestFinished(() => auth.close())
  const { signal } = new AbortController()
  const ask = (pair: string) => {
    const headers = { authorization: `Basic ${Buffer.from(pair).toString('base64')}` }
    const request = { headers, socket: { remoteAddress: '127.0.0.1' } } as IncomingMessage
    return auth.authorize(request, { signal }).catch((error: { status: number }) => error.status)
  }
  let asked = 0
  /** Detects a remembered password: its answer comes before another comparison ends, because only one runs at a time. */
  const find = async (pair: string) => {
    const other = ask(`slow:wrong-${(asked += 1)}`)
    const answer = ask(pair)
    const how = await Promise.race([answer.then(() => 'remembered'), other.then(() => 'compared')])
    await other
    return [await answer, how]
  }
  return { find, pass: (ms: number) => void (now += ms) }
}

test('a correct password is compared again after five minutes without use', async () => {
  const { find, pass } = await open()
  expect(await find('dev:right')).toEqual(['dev', 'compared'])
  for (let use = 0; use < 2; use++) {
    pass(5 * minutes - 1)
    expect(await find('dev:right')).toEqual(['dev', 'remembered'])
  }
  pass(5 * minutes)
  expect(await find('dev:right')).toEqual(['dev', 'compared'])
})

test('a wrong password is compared again after five minutes, however often it is tried', async () => {
  const { find, pass } = await open()
  expect(await find('dev:wrong')).toEqual([401, 'compared'])
  pass(5 * minutes - 1)
  expect(await find('dev:wrong')).toEqual([401, 'remembered'])
  pass(1)
  expect(await find('dev:wrong')).toEqual([401, 'compared'])
})
