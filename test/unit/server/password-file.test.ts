import { spawnSync } from 'node:child_process'
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs'
import { chmod, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { silentLogger, type Logger } from '../../../src/lib/logger.ts'
import { openPasswordFile } from '../../../src/server/basic-auth.ts'
import { temporaryHome } from '../../support/mirror.ts'

const tail = 'CwTycUXWue0Thq9StjUM0uJ8z8vyJjVqK3v0F9kz6m3gK6cQJc1uS'
const line = (user: string, cost: number, version = '2y') =>
  `${user}:$${version}$${String(cost).padStart(2, '0')}$${tail}\n`

async function open(text: string) {
  const path = join(await temporaryHome(), 'htpasswd')
  await writeFile(path, text)
  const log: string[] = []
  const reasons: unknown[] = []
  const note = (fields: object, message: string) => {
    log.push(message)
    reasons.push('reason' in fields ? fields.reason : undefined)
  }
  const logger: Logger = { debug: note, info: note, warn: note, error: note }
  return { path, log, reasons, file: await openPasswordFile(path, logger) }
}

const costOf = ({ hash }: { readonly hash: string }) => Number(hash.slice(4, 6))
const strangers = Array.from({ length: 400 }, (_, at) => `stranger-${at}`)

describe('the hash for an unknown user name', () => {
  test.each([4, 8, 12, 16])("has the cost of the file's hashes: %i", async (cost) => {
    const { file } = await open(line('one', cost) + line('two', cost, '2b'))
    const users = await file.users()
    for (const name of strangers) {
      expect(users.findHash(name)).toMatchObject({ isKnown: false, hash: expect.stringMatching(/^\$2b\$\d\d\$.{53}$/) })
      expect(costOf(users.findHash(name))).toBe(cost)
    }
    expect(users.findHash('one')).toEqual({ isKnown: true, hash: `$2y$${String(cost).padStart(2, '0')}$${tail}` })
  })

  test('has one of the costs in the file, as often as the file has it, and the same one each time', async () => {
    const text = line('one', 5) + line('two', 5) + line('three', 5) + line('four', 9)
    const [first, second] = [await open(text), await open(text)]
    const [users, again] = [await first.file.users(), await second.file.users()]
    const costs = strangers.map((name) => costOf(users.findHash(name)))
    expect(new Set(costs)).toEqual(new Set([5, 9]))
    const share = costs.filter((cost) => cost === 9).length / costs.length
    expect(share).toBeGreaterThan(0.15)
    expect(share).toBeLessThan(0.35)
    expect(strangers.map((name) => costOf(again.findHash(name)))).toEqual(costs)
  })

  test('has the default cost where the file is empty', async () => {
    const { file } = await open('# nobody yet\n\n')
    expect(costOf((await file.users()).findHash('dev'))).toBe(10)
  })
})

describe('the error for an unusable password file', () => {
  test.each([
    ['a cost that would take days', `${line('one', 10)}${line('two', 31)}`, /line 2 has a bcrypt cost of 31.*16/],
    ['a cost just above the limit', line('one', 17), /line 1 has a bcrypt cost of 17/],
    ['a cost below what bcrypt has', line('one', 3), /line 1 is not a user name and a bcrypt hash/],
    ['another kind of hash', `# people\r\n\r\ndev:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\r\n`, /line 3 is not/],
    ['no user name', line('', 10), /line 1 is not/],
    ['a hash that is cut', line('one', 10).slice(0, -5), /line 1 is not/],
    ['more than a file of passwords has', '#'.repeat(1024 * 1024 + 1), /larger than 1 MiB/],
  ])('names the line and the reason: %s', async (_what, text, message) => {
    const opened = open(text)
    await expect(opened).rejects.toThrow(message)
    await expect(opened).rejects.not.toThrow(tail)
  })
})

describe('the hint for a password file that cannot be used', () => {
  test('creates a file that does not exist', async () => {
    const path = join(await temporaryHome(), 'none')
    await expect(openPasswordFile(path, silentLogger)).rejects.toMatchObject({
      message: `The password file ${path} cannot be used: it does not exist.`,
      hints: [`htpasswd -cB '${path}' USER`],
    })
  })

  test('does not empty a file that exists', async () => {
    const path = join(await temporaryHome(), 'htpasswd')
    await writeFile(path, `${line('one', 10)}dev:nonsense\n`)
    await expect(openPasswordFile(path, silentLogger)).rejects.toMatchObject({ hints: [`htpasswd -B '${path}' USER`] })
  })
})

test('an unusable change of the password file refuses every login, is logged once, and ends when the file is fixed', async () => {
  const { path, file, log, reasons } = await open(line('dev', 5))
  expect(await file.getProblem()).toBeUndefined()
  expect((await file.users()).findHash('dev').isKnown).toBe(true)
  await writeFile(path, 'dev:nonsense\n')
  for (let at = 0; at < 3; at++) await expect(file.users()).rejects.toMatchObject({ status: 503 })
  await rm(path)
  for (let at = 0; at < 3; at++) await expect(file.users()).rejects.toMatchObject({ status: 503 })
  expect(log.filter((message) => message.includes('cannot be used'))).toHaveLength(2)
  expect(reasons).toEqual(['line 1 is not a user name and a bcrypt hash', 'it does not exist'])
  expect(await file.getProblem()).toBe(`The password file ${path} cannot be used: it does not exist.`)
  await writeFile(path, line('other', 5))
  await chmod(path, 0o600)
  const users = await file.users()
  expect([users.findHash('dev').isKnown, users.findHash('other').isKnown]).toEqual([false, true])
  expect(await file.getProblem()).toBeUndefined()
})

test.skipIf(process.platform !== 'linux')(
  'a change that comes while no file can be opened admits users as soon as one can',
  async () => {
    const { path, file, log } = await open(line('dev', 5))
    await writeFile(path, line('other', 5))
    const limitFiles = (limit: number | string) =>
      spawnSync('prlimit', ['--pid', String(process.pid), `--nofile=${limit}:`], { encoding: 'utf8' })
    const before = Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))![1])
    const room = 20
    expect(limitFiles(Math.max(...readdirSync('/proc/self/fd').map(Number)) + room).status).toBe(0)
    const opened: number[] = []
    try {
      expect(() => {
        for (;;) opened.push(openSync('/dev/null', 'r'))
      }).toThrow('EMFILE')
      for (let at = 0; at < 3; at++) await expect(file.users()).rejects.toMatchObject({ status: 503 })
    } finally {
      for (const one of opened) closeSync(one)
      limitFiles(before)
    }
    expect((await file.users()).findHash('other').isKnown).toBe(true)
    expect(log.filter((message) => message.includes('cannot be used'))).toHaveLength(1)
  },
)
