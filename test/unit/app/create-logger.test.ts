import { describe, expect, test } from 'vitest'
import { createLogger } from '../../../src/app/create-logger.ts'

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

  test('says nothing below its level', async () => {
    const { logger, lines } = await logged('warn')
    logger.debug({}, 'a')
    logger.info({}, 'b')
    logger.warn({}, 'c')
    expect(lines).toHaveLength(1)
  })

  test('has no secrets, not even in errors', async () => {
    const { logger, lines } = await logged('debug')
    const secret = 'https://bob:hunter2@a.example/x?X-Amz-Signature=abcdef Bearer 0123456789abcdef'
    logger.debug({ url: secret, error: new Error(secret), inner: { list: [secret] } }, secret)
    expect(lines.join()).not.toMatch(/hunter2|abcdef/)
  })
})
