import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { hash } from 'bcryptjs'
import { describe, expect, test } from 'vitest'
import { expectError } from '../support/expect-content.ts'
import { get, type Answer } from '../support/get.ts'
import { leavingClients } from '../support/leaving-clients.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startTestRegistry } from '../support/registry.ts'

const basic = (text: string | Buffer) => ({ authorization: `Basic ${Buffer.from(text).toString('base64')}` })

async function startWith(lines: string) {
  const home = await temporaryHome()
  const htpasswd = join(home, 'htpasswd')
  await writeFile(htpasswd, lines)
  const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
  const logIn = (text: string | Buffer) => registry.get('/v2/', basic(text))
  return { registry, htpasswd, logIn }
}

const statusesOf = (answers: readonly Answer[]) => ({
  401: answers.filter(({ status }) => status === 401).length,
  429: answers.filter(({ status }) => status === 429).length,
})

describe('300 wrong passwords at once', () => {
  test.each(['one', 'unknown', 'many'])(
    'are refused at once but for nine, after which the right one is compared (names: %s)',
    async (how) => {
      const { logIn } = await startWith(`dev:${await hash('right', 10)}\n`)
      const nameOf = (at: number) => ({ one: 'dev', unknown: 'nobody' })[how] ?? `name-${at}`
      let compared = 0
      const flood = Array.from({ length: 300 }, async (_, at) => {
        const answer = await logIn(`${nameOf(at)}:wrong-${at}`)
        if (answer.status === 401) compared += 1
        return answer
      })
      await Promise.race(flood)
      for (;;) {
        const before = compared
        const answer = await logIn('dev:right')
        // Checks that the login waits only for the comparisons before it.
        expect(compared - before).toBeLessThanOrEqual(9)
        if (answer.status === 200) break
        expect(answer.status).toBe(429)
        await sleep(Math.min(1000, Number(answer.headers['retry-after']) * 1000))
      }
      const answers = await Promise.all(flood)
      const counts = statusesOf(answers)
      expect(counts[401] + counts[429]).toBe(300)
      expect(counts[429]).toBeGreaterThan(150)
      for (const answer of answers.filter(({ status }) => status === 429)) {
        expectError(answer, 429, 'TOOMANYREQUESTS')
        expect(answer.headers['retry-after']).toMatch(/^[1-9]\d*$/)
      }
    },
  )

  test('delay no request that needs no password', async () => {
    // Uses a cost at which a comparison takes seconds.
    const { registry } = await startWith(`dev:$2b$16$${'.'.repeat(53)}\n`)
    const { signal, leave } = leavingClients()
    let isCompared = false
    const wrong = get(registry.url, '/v2/', { headers: basic('dev:wrong'), signal }).then(
      () => (isCompared = true),
      () => undefined,
    )
    // Sends so many requests that a comparison on the event loop, which bcrypt leaves ten times a second, would end before them.
    for (let at = 0; at < 200; at++) expect((await registry.get('/v2/')).status).toBe(401)
    expect(isCompared).toBe(false)
    leave()
    await wrong
  })

  test('that are equal are compared once, for a known name and for an unknown one', async () => {
    const cost = 11
    const { logIn } = await startWith(`dev:${await hash('right', cost)}\n`)
    for (const name of ['dev', 'nobody']) {
      const answers = await Promise.all(Array.from({ length: 300 }, () => logIn(`${name}:wrong`)))
      expect(statusesOf(answers)).toEqual({ 401: 300, 429: 0 })
    }
  })

  test('of clients that disconnect are not compared', async () => {
    const { registry, logIn } = await startWith(`dev:${await hash('right', 12)}\n`)
    const { signal, leave } = leavingClients()
    let [left, refused] = [0, 0]
    const flood = Array.from({ length: 60 }, (_, at) =>
      get(registry.url, '/v2/', { headers: basic(`dev:wrong-${at}`), signal }).then(
        ({ status }) => (refused += status === 429 ? 1 : 0),
        () => (left += 1),
      ),
    )
    // Waits until the queue is full: one password is compared, and eight wait.
    await expect.poll(() => refused, { interval: 5 }).toBeGreaterThan(45)
    leave()
    await Promise.all(flood)
    expect(left).toBeGreaterThan(4)
    // Waits until the server has noticed all disconnects, and has logged a line for each request.
    const ends = () => registry.log.filter((line) => /^info request .*"status":(401|429|499)/.test(line)).length
    await expect.poll(ends).toBe(60)
    const answers = await Promise.all(Array.from({ length: 8 }, (_, at) => logIn(`dev:later-${at}`)))
    expect(statusesOf(answers)).toEqual({ 401: 8, 429: 0 })
  })
})

describe('a password that was correct', () => {
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
  })

  test('is wrong as soon as the line of its user changes, and stays correct when only other lines change', async () => {
    const kept = `dev:${await hash('right', 4)}\n`
    const { htpasswd, logIn } = await startWith(`${kept}other:${await hash('1', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:1')).status]).toEqual([200, 200])
    await writeFile(htpasswd, `${kept}other:${await hash('22', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:1')).status]).toEqual([200, 401])
    expect((await logIn('other:22')).status).toBe(200)
    await writeFile(htpasswd, `other:${await hash('333', 4)}\n`)
    expect([(await logIn('dev:right')).status, (await logIn('other:22')).status]).toEqual([401, 401])
  })

  test('is correct for a name that was not in the file when it was tried first', async () => {
    const { htpasswd, logIn } = await startWith(`dev:${await hash('right', 4)}\n`)
    expect((await logIn('new:secret')).status).toBe(401)
    await writeFile(htpasswd, `new:${await hash('secret', 4)}\n`)
    expect((await logIn('new:secret')).status).toBe(200)
  })
})

test('a password file that has become unusable is reported by the status before any request', async () => {
  const { registry, htpasswd, logIn } = await startWith(`dev:${await hash('right', 4)}\n`)
  expect(await registry.status()).not.toHaveProperty('troubles')
  await writeFile(htpasswd, 'dev:nonsense\n')
  expect((await registry.status()).troubles).toEqual([
    `Nobody can log in to the registry, because the password file ${htpasswd} cannot be used: line 1 is not a user name and a bcrypt hash.`,
  ])
  expect((await logIn('dev:right')).status).toBe(503)
  const admin = (await registry.status()).endpoints.admin[0]!
  // Expects a healthy mirror, because a restart by a supervisor would fail with this password file.
  expect((await get(admin, '/healthz')).status).toBe(200)
  await writeFile(htpasswd, `dev:${await hash('right', 4)}\n`)
  expect(await registry.status()).not.toHaveProperty('troubles')
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
    // Uses a cost at which a comparison would exceed the test's timeout.
    const { registry } = await startWith(`dev:$2b$16$${'.'.repeat(53)}\n`)
    expectError(await registry.get('/v2/', headers), 401, 'UNAUTHORIZED')
  })

  test('may have a password in any language, of which bcrypt uses the first 72 bytes', async () => {
    const long = 'é'.repeat(36)
    const { logIn } = await startWith(`dev:${await hash('pässwörd', 4)}\nlong:${await hash(long, 4)}\n`)
    expect((await logIn('dev:pässwörd')).status).toBe(200)
    expect((await logIn(`long:${long}`)).status).toBe(200)
    expect((await logIn(`long:${long}and more`)).status).toBe(200)
    expect((await logIn(`long:${long.slice(1)}`)).status).toBe(401)
  })
})

test('a damaged password file refuses every login until it is fixed', async () => {
  const line = `dev:${await hash('right', 4)}\n`
  const { registry, htpasswd, logIn } = await startWith(line)
  expect((await logIn('dev:right')).status).toBe(200)
  await writeFile(htpasswd, `${line}other:${'x'.repeat(20)}\n`)
  expectError(await logIn('dev:right'), 503, 'UNAVAILABLE')
  expect(registry.log.join('\n')).toContain('line 2 is not a user name and a bcrypt hash')
  await writeFile(htpasswd, line)
  expect((await logIn('dev:right')).status).toBe(200)
})
