import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { limitLog } from '../../../src/daemon/logging.ts'

test('a log that is too large is copied and truncated, and its writer continues in the same file', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-log-'))
  const log = join(folder, 'log')
  await limitLog(log, 10)
  await writeFile(log, '0123456789')
  await limitLog(log, 10)
  expect(await readFile(log, 'utf8')).toBe('0123456789')

  const writer = await open(log, 'a')
  await writer.write('x')
  await limitLog(log, 10)
  await writer.write('y')
  await writer.close()
  expect(await readFile(`${log}.1`, 'utf8')).toBe('0123456789x')
  expect(await readFile(log, 'utf8')).toBe('y')
  await rm(folder, { recursive: true })
})
