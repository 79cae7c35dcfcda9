import type { Dispatcher } from 'undici'
import { expect, test } from 'vitest'
import { dispatch } from '../../../src/upstream/undici.ts'

const request = { origin: 'http://registry.example', path: '/', method: 'GET' } as const

/** Opens an undici dispatcher with a request that the test answers. */
function open() {
  const signal = new AbortController()
  let handler!: Dispatcher.DispatchHandler
  const dispatcher = { dispatch: (_: unknown, given: Dispatcher.DispatchHandler) => ((handler = given), true) }
  let closed = 0
  const answered = dispatch(dispatcher as unknown as Dispatcher, request, {
    signal: signal.signal,
    explain: (error) => error as Error,
    onClose: () => void (closed += 1),
  })
  const control = { abort: (reason: Error) => handler.onResponseError?.(control as never, reason) }
  const start = () => handler.onRequestStart?.(control as never, {})
  return { answered, signal, start, closed: () => closed }
}

test('a request that is aborted while it runs ends once', async () => {
  const { answered, signal, start, closed } = open()
  start()
  signal.abort(new Error('enough'))
  await expect(answered).rejects.toThrow('enough')
  expect(closed()).toBe(1)
})

test('a request that is aborted before it has a connection ends at once, and not again at its turn', async () => {
  const { answered, signal, start, closed } = open()
  signal.abort(new Error('enough'))
  await expect(answered).rejects.toThrow('enough')
  start()
  expect(closed()).toBe(1)
})
