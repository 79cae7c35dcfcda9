import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { createLogWriter } from '../../../src/app/log-writer.ts'
import { temporaryFolder } from '../store/support/store.ts'

test('lines are in the file when the turn that wrote them is over', async () => {
  const file = join(await temporaryFolder(), 'log')
  const descriptor = openSync(file, 'a')
  onTestFinished(() => closeSync(descriptor))
  const log = createLogWriter(descriptor)
  const text = () => readFileSync(file, 'utf8')
  log.write('a\n')
  log.write('ä\n')
  expect(text()).toBe('')
  await nextTurn()
  expect(text()).toBe('a\nä\n')
  log.write('b\n')
  await nextTurn()
  expect(text()).toBe('a\nä\nb\n')
})

test('a log that cannot be written is lost, and nothing else', async () => {
  const descriptor = openSync('/dev/null', 'r')
  const log = createLogWriter(descriptor)
  onTestFinished(() => closeSync(descriptor))
  log.write('a\n')
  await nextTurn()
  log.write('b\n')
  await nextTurn()
})
