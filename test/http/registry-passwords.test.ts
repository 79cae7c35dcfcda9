import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { hash, hashSync } from 'bcryptjs'
import { describe, expect, test } from 'vitest'
import { expectError } from '../support/expect-content.ts'
import { get, type Answer } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startTestRegistry } from '../support/registry.ts'

const basic = (text: string | Buffer) => ({ authorization: `Basic ${Buffer.from(text).toString('base64')}` })

async function startWith(lines: string) {
  const home = await temporaryHome()
  const htpasswd = join(home, 'htpasswd')
  await writeFile(htpasswd, lines)
  const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
  const logIn = (text: string | Buffer) => registry.get('/v2/', basic(text))
  /** As a client does that is told to come back. */
  const logInPatiently = async (text: string) => {
    for (;;) {
      const answer = await logIn(text)
      if (answer.status !== 429) return answer
      await sleep(Math.min(1000, Number(answer.headers['retry-after']) * 1000))
    }
  }
  return { registry, htpasswd, logIn, logInPatiently }
}

const statusesOf = (answers: readonly Answer[]) => ({
  401: answers.filter(({ status }) => status === 401).length,
  429: answers.filter(({ status }) => status === 429).length,
})

/** How long one comparison of this cost takes here and now, ms. */
function timeOf(cost: number): number {
  const begun = performance.now()
  hashSync('password', cost)
  return performance.now() - begun
}

describe('300 wrong passwords at once', () => {
  test.each(['one', 'unknown', 'many'])(
    'are refused while the next login and the event loop go on (names: %s)',
    async (how) => {
      const { logIn, logInPatiently } = await startWith(`dev:${await hash('right', 10)}\n`)
      const nameOf = (at: number) => ({ one: 'dev', unknown: 'nobody' })[how] ?? `name-${at}`
      const delay = monitorEventLoopDelay({ resolution: 10 })
      delay.enable()
      const flood = Array.from({ length: 300 }, (_, at) => logIn(`${nameOf(at)}:wrong-${at}`))
      await Promise.race(flood)
      const begun = performance.now()
      expect((await logInPatiently('dev:right')).status).toBe(200)
      const waited = performance.now() - begun
      const answers = await Promise.all(flood)
      delay.disable()
      const counts = statusesOf(answers)
      expect(counts[401] + counts[429]).toBe(300)
      expect(counts[429]).toBeGreaterThan(150)
      for (const answer of answers.filter(({ status }) => status === 429)) {
        expectError(answer, 429, 'TOOMANYREQUESTS')
        expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/)
      }
      // Nine comparisons are before it, and a second may pass before it comes back. It was all 300.
      const once = timeOf(10)
      expect(waited).toBeLessThan(2000 + 40 * once)
      expect(delay.percentile(99) / 1e6).toBeLessThan(Math.max(400, 2 * once))
    },
    30_000,
  )

  test('that are the same are compared once, for a name of the file and for another one', async () => {
    const cost = 11
    const { logIn } = await startWith(`dev:${await hash('right', cost)}\n`)
    for (const name of ['dev', 'nobody']) {
      const answers = await Promise.all(Array.from({ length: 300 }, () => logIn(`${name}:wrong`)))
      expect(statusesOf(answers)).toEqual({ 401: 300, 429: 0 })
    }
  }, 20_000)

  test('of clients that leave cost nothing', async () => {
    const cost = 12
    const { registry, logInPatiently } = await startWith(`dev:${await hash('right', cost)}\n`)
    const leaving = new AbortController()
    const flood = Array.from({ length: 9 }, (_, at) =>
      get(registry.url, '/v2/', { headers: basic(`dev:wrong-${at}`), signal: leaving.signal }).catch(() => 'left'),
    )
    // All of them have come before they leave.
    await expect
      .poll(async () => (await registry.get('/v2/', basic('dev:one-more'))).status, { interval: 1, timeout: 5000 })
      .toBe(429)
    leaving.abort()
    await Promise.all(flood)
    const begun = performance.now()
    expect((await logInPatiently('dev:right')).status).toBe(200)
    const waited = performance.now() - begun
    expect(waited).toBeLessThan(1000 + 6 * timeOf(cost))
  }, 20_000)
})

describe('a password that was right', () => {
  test('is not compared again, whatever else is waiting', async () => {
    const { logIn } = await startWith(`dev:${await hash('right', 12)}\n`)
    expect((await logIn('dev:right')).status).toBe(200)
    const flood = Array.from({ length: 20 }, (_, at) => logIn(`dev:wrong-${at}`))
    await Promise.race(flood)
    let finished = false
    const ended = Promise.all(flood).then(() => (finished = true))
    for (let at = 0; at < 20; at++) expect((await logIn('dev:right')).status).toBe(200)
    expect(finished).toBe(false)
    await ended
  }, 20_000)

  test('is wrong as soon as the line of its user is another one, and stays right when only others change', async () => {
    const kept = `dev:${await hash('right', 4)}\n`
    const { htpasswd, logIn } = await startWith(`${kept}other:${await hash('1', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:1')).status]).toEqual([200, 200])
    await writeFile(htpasswd, `${kept}other:${await hash('22', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:1')).status]).toEqual([200, 401])
    expect((await logIn('other:22')).status).toBe(200)
    await writeFile(htpasswd, `other:${await hash('333', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:22')).status]).toEqual([401, 401])
  })

  test('is right for a name that was not in the file when it was tried first', async () => {
    const { htpasswd, logIn } = await startWith(`dev:${await hash('right', 4)}\n`)
    expect((await logIn('new:secret')).status).toBe(401)
    await writeFile(htpasswd, `new:${await hash('secret', 4)}\n`)
    expect((await logIn('new:secret')).status).toBe(200)
  })
})

describe('an Authorization header', () => {
  test.each([
    ['longer than 4 KiB', basic(`dev:${'x'.repeat(4000)}`)],
    ['of bytes that are no UTF-8', basic(Buffer.from([0x64, 0x65, 0x76, 0x3a, 0xff, 0xfe]))],
    ['with a NUL in the password', basic('dev:right\0more')],
    ['with a line break in the name', basic('dev\n:right')],
    ['without a colon', basic('dev')],
    ['without anything', { authorization: 'Basic' }],
    ['with more than base64', { authorization: `${basic('dev:right').authorization} x` }],
  ])('%s is refused, and not compared', async (_what, headers) => {
    // A comparison of this cost would take longer than the test may.
    const { registry } = await startWith(`dev:$2b$16$${'.'.repeat(53)}\n`)
    expectError(await registry.get('/v2/', headers), 401, 'UNAUTHORIZED')
  })

  test('holds a password of any language, of which bcrypt takes the first 72 bytes', async () => {
    const long = 'é'.repeat(36)
    const { logIn } = await startWith(`dev:${await hash('pässwörd', 4)}\nlong:${await hash(long, 4)}\n`)
    expect((await logIn('dev:pässwörd')).status).toBe(200)
    expect((await logIn(`long:${long}`)).status).toBe(200)
    expect((await logIn(`long:${long}and more`)).status).toBe(200)
    expect((await logIn(`long:${long.slice(1)}`)).status).toBe(401)
  })
})

test('a password file that was damaged lets nobody in until it is mended', async () => {
  const line = `dev:${await hash('right', 4)}\n`
  const { registry, htpasswd, logIn } = await startWith(line)
  expect((await logIn('dev:right')).status).toBe(200)
  await writeFile(htpasswd, `${line}other:${'x'.repeat(20)}\n`)
  expectError(await logIn('dev:right'), 503, 'UNAVAILABLE')
  expect(registry.log.join('\n')).toContain('line 2 is not a user name and a bcrypt hash')
  await writeFile(htpasswd, line)
  expect((await logIn('dev:right')).status).toBe(200)
})
