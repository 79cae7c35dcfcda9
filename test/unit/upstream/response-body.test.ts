import { expect, test } from 'vitest'
import { ResponseBody } from '../../../src/upstream/undici.ts'

function open() {
  const calls: string[] = []
  const control = {
    pause: () => void calls.push('pause'),
    resume: () => void calls.push('resume'),
    abort: () => void calls.push('abort'),
  }
  const explain = (error: unknown) => new Error(`explained: ${String(error)}`)
  const body = new ResponseBody({ control, explain, onClose: () => void calls.push('close') })
  return { body, calls }
}

const bytes = (length: number) => new Uint8Array(length)

test('chunks before the end, or before a failure, are read first', async () => {
  for (const [finish, last] of [
    [(body: ResponseBody) => body.end(), { done: true, value: undefined }],
    [(body: ResponseBody) => body.fail('cut'), 'explained: cut'],
  ] as const) {
    const { body, calls } = open()
    body.push(bytes(1))
    body.push(bytes(2))
    finish(body)
    expect(await body.next()).toEqual({ done: false, value: bytes(1) })
    expect(await body.next()).toEqual({ done: false, value: bytes(2) })
    expect(await body.next().catch((error: Error) => error.message)).toEqual(last)
    expect(calls).toEqual(['close'])
  }
})

test('a pending read gets the next chunk, the end, or the failure', async () => {
  const { body } = open()
  const first = body.next()
  body.push(bytes(3))
  expect(await first).toEqual({ done: false, value: bytes(3) })
  const second = body.next()
  body.fail('cut')
  await expect(second).rejects.toThrow('explained: cut')
})

test('a slow reader pauses the upstream, and resumes it when it has caught up', async () => {
  const { body, calls } = open()
  body.push(bytes(200_000))
  body.push(bytes(200_000))
  expect(calls).toEqual(['pause'])
  await body.next()
  expect(calls).toEqual(['pause', 'resume'])
})

test('stopping early ends the connection once, and drops the chunks that arrived', async () => {
  const { body, calls } = open()
  body.push(bytes(1))
  await body.return()
  await body.return()
  body.fail('the connection was ended')
  expect(await body.next()).toEqual({ done: true, value: undefined })
  expect(calls).toEqual(['close', 'abort'])
})

test('a discarded body is read to its end if the end is near and arrives soon', async () => {
  const near = open()
  near.body.push(bytes(300_000))
  near.body.dump(400_000, 1000)
  near.body.push(bytes(50_000))
  near.body.end()
  expect(near.calls).toEqual(['pause', 'resume', 'close'])

  const far = open()
  far.body.dump(1000, 1000)
  far.body.push(bytes(1001))
  expect(far.calls).toEqual(['close', 'abort'])

  const late = open()
  late.body.dump(1000, 1)
  await expect.poll(() => late.calls).toEqual(['close', 'abort'])
})
