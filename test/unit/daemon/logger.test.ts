import { describe, expect, test } from 'vitest'
import { createLogger } from '../../../src/daemon/logging.ts'

async function logged(level: 'debug' | 'info' | 'warn' | 'error') {
  const lines: string[] = []
  const logger = await createLogger({ level, write: (line) => lines.push(line) })
  return { logger, lines, last: () => JSON.parse(lines.at(-1)!) as Record<string, unknown> }
}

describe('the log', () => {
  test('is JSON lines with level, time, fields and message', async () => {
    const { logger, lines, last } = await logged('info')
    logger.info({ host: 'docker.io', bytes: 7 }, 'fetched')
    expect(last()).toEqual({
      level: 'info',
      time: expect.stringMatching(/^\d{4}-.*Z$/),
      host: 'docker.io',
      bytes: 7,
      msg: 'fetched',
    })
    expect(lines[0]).toMatch(/\n$/)
  })

  test('writes no line below its level', async () => {
    const { logger, lines } = await logged('warn')
    logger.debug({}, 'a')
    logger.info({}, 'b')
    logger.warn({}, 'c')
    expect(lines).toHaveLength(1)
  })

  test('contains no secrets, not even in errors', async () => {
    const { logger, lines } = await logged('debug')
    const secret = 'https://bob:hunter2@a.example/x?X-Amz-Signature=abcdef Bearer 0123456789abcdef'
    logger.debug({ url: secret, error: new Error(secret), inner: { list: [secret] } }, secret)
    expect(lines.join()).not.toMatch(/hunter2|abcdef/)
  })

  test('has short lines, however long the texts of clients and upstreams are', async () => {
    const { logger, lines, last } = await logged('info')
    const long = 'x'.repeat(1_000_000)
    const many = Object.fromEntries(Array.from({ length: 10_000 }, (_, at) => [`host-${at}.example`, long]))
    const cyclic: Record<string, unknown> = { long }
    cyclic['again'] = cyclic
    for (const fields of [
      { agent: long },
      { error: new Error(long) },
      { list: Array.from({ length: 10_000 }, () => long) },
      many,
      { list: Array.from({ length: 1_000_000 }, () => 0) },
      { text: '\u0000'.repeat(1_000_000) },
      cyclic,
    ]) {
      logger.info(fields, 'said')
      expect(lines.at(-1)!.length).toBeLessThan(64 * 1024)
      expect(last()).toMatchObject({ msg: 'said' })
    }
    logger.info({ agent: long, host: 'a.example' }, 'said')
    expect(last()).toMatchObject({ agent: expect.stringMatching(/^x{4096}… \(995904 more\)$/), host: 'a.example' })
  })
})
