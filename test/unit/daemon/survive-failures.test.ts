import { EventEmitter } from 'node:events'
import { expect, test } from 'vitest'
import { createSystemError } from '../../../src/lib/errors.ts'
import type { LogFields } from '../../../src/lib/logger.ts'
import { surviveFailures } from '../../../src/daemon/serve.ts'

function watch() {
  const source = new EventEmitter() as EventEmitter & Pick<NodeJS.Process, 'on' | 'off'>
  const log: { readonly fields: LogFields; readonly message: string }[] = []
  const exits: number[] = []
  const error = (fields: LogFields, message: string) => void log.push({ fields, message })
  const logger = { debug() {}, info() {}, warn() {}, error }
  const stop = surviveFailures(source, { logger, exit: (code) => void exits.push(code) })
  return { source, log, exits, stop }
}

test('an unhandled rejection is logged with its stack and counted, and the process continues', () => {
  const { source, log, exits } = watch()
  source.emit('unhandledRejection', new TypeError('of one request'))
  source.emit('unhandledRejection', 'no error at all')
  expect(exits).toEqual([])
  expect(log.map(({ fields }) => fields['count'])).toEqual([1, 2])
  expect(log[0]!.fields['error']).toContain('survive-failures.test.ts')
})

test('a system error that is thrown out of a callback is survived, any other exception ends the process', () => {
  const { source, log, exits } = watch()
  source.emit('uncaughtException', createSystemError('EMFILE', 'accept', 'accept EMFILE'))
  expect(exits).toEqual([])
  source.emit('uncaughtException', new TypeError('x is not a function'))
  expect(exits).toEqual([1])
  expect(log).toHaveLength(2)
})

test('no listener for failures is left when the server has ended', () => {
  const { source, stop } = watch()
  stop()
  expect(source.listenerCount('unhandledRejection') + source.listenerCount('uncaughtException')).toBe(0)
})
