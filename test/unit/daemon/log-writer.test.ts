import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { createLogWriter } from '../../../src/daemon/logging.ts'
import { createSystemError } from '../../../src/lib/errors.ts'
import { temporaryFolder } from '../../support/store/store.ts'

test('log lines are in the file at the end of the turn that wrote them', async () => {
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

test('a log that cannot be written loses its lines and stops nothing', async () => {
  const descriptor = openSync('/dev/null', 'r')
  const log = createLogWriter(descriptor)
  onTestFinished(() => closeSync(descriptor))
  log.write('a\n')
  await nextTurn()
  log.write('b\n')
  await nextTurn()
})

/** Returns a sink that fails as `state` says. */
function flakySink() {
  const state = { text: '', fails: undefined as string | undefined, most: Infinity }
  return {
    state,
    write(bytes: Uint8Array, from: number) {
      if (state.fails !== undefined && state.most <= 0) throw createSystemError(state.fails, 'write', state.fails)
      const part = bytes.subarray(from, from + Math.min(bytes.length, state.most))
      state.text += Buffer.from(part).toString()
      state.most -= part.length
      return part.length
    },
  }
}

test.each(['ENOSPC', 'EDQUOT', 'EIO', 'EPIPE', 'EFBIG'])(
  'lines that %s keeps from being written are counted, and a later line says how many',
  async (code) => {
    const sink = flakySink()
    const log = createLogWriter(sink)
    log.write('one\n')
    await nextTurn()
    Object.assign(sink.state, { fails: code, most: 6 })
    log.write('two\n')
    log.write('three\n')
    await nextTurn()
    log.write('four\n')
    await nextTurn()
    expect(sink.state.text).toBe('one\ntwo\nth')
    Object.assign(sink.state, { fails: undefined, most: Infinity })
    log.write('five\n')
    await nextTurn()
    const [, , cut, said, last] = sink.state.text.split('\n')
    expect([cut, last]).toEqual(['th', 'five'])
    expect(JSON.parse(said!)).toMatchObject({ level: 'warn', lost: 2, reason: code, msg: 'lines of the log were lost' })
    log.write('six\n')
    await nextTurn()
    expect(sink.state.text).toMatch(/five\nsix\n$/)
  },
)

test('lost lines are reported again when the report itself is lost', async () => {
  const sink = flakySink()
  const log = createLogWriter(sink)
  Object.assign(sink.state, { fails: 'ENOSPC', most: 0 })
  for (const line of ['one\n', 'two\n', 'three\n']) {
    log.write(line)
    await nextTurn()
  }
  Object.assign(sink.state, { fails: undefined, most: Infinity })
  log.write('four\n')
  await nextTurn()
  expect(JSON.parse(sink.state.text.split('\n')[0]!)).toMatchObject({ lost: 3 })
})

test('a stalled reader of the log costs bounded memory, and gets the newest lines later', async () => {
  const sink = flakySink()
  const log = createLogWriter(sink)
  Object.assign(sink.state, { fails: 'EAGAIN', most: 10 })
  const line = (number: number) => `${String(number).padStart(8, '0')}${'x'.repeat(1000)}\n`
  for (let number = 0; number < 50_000; number += 1) {
    log.write(line(number))
    if (number % 1000 === 0) await nextTurn()
  }
  Object.assign(sink.state, { fails: undefined, most: Infinity })
  await expect.poll(() => sink.state.text.endsWith(line(49_999))).toBe(true)
  expect(sink.state.text.length).toBeLessThan(1.2 * 1024 * 1024)
  const lines = sink.state.text.split('\n')
  const report = JSON.parse(lines.find((text) => text.startsWith('{'))!) as { lost: number; reason: string }
  // Subtracts the report and the empty text after the last line.
  expect(report.lost).toBe(50_000 - (lines.length - 2))
})

test('a log line that is too long is cut', async () => {
  const sink = flakySink()
  const log = createLogWriter(sink)
  log.write(`${'x'.repeat(10_000_000)}\n`)
  await nextTurn()
  expect(sink.state.text.length).toBeLessThan(70_000)
  expect(sink.state.text.endsWith('\n')).toBe(true)
})
