import { readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { get } from 'node:http'
import { connect, createServer, type AddressInfo, type NetConnectOpts } from 'node:net'
import { setPriority } from 'node:os'
import { describe, expect, test } from 'vitest'
import {
  getCode,
  describeFailure,
  getErrno,
  isConnectionFailure,
  MirrorError,
  createSystemError,
} from '../../../src/lib/errors.ts'
import { OciError } from '../../../src/oci/errors.ts'

const caught = (act: () => unknown): unknown => {
  try {
    act()
  } catch (error) {
    return error
  }
  throw new Error('nothing was thrown')
}
const rejected = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error,
  )
const noPath = undefined as unknown as string

describe('a system error', () => {
  test('is the error of a failed system call', async () => {
    expect(getErrno(caught(() => readFileSync('/no/such/file')))).toBe('ENOENT')
    expect(getErrno(await rejected(readFile('/')))).toBe('EISDIR')
    expect(getErrno(caught(() => process.kill(2 ** 30, 0)))).toBe('ESRCH')
    expect(getErrno(createSystemError('ENOSPC', 'write', 'no space'))).toBe('ENOSPC')
  })

  test('has the code of the system, although node:os wraps it in its own code', () => {
    const error = caught(() => setPriority(2 ** 30, 0))
    expect([getCode(error), getErrno(error)]).toEqual(['ERR_SYSTEM_ERROR', 'ESRCH'])
  })

  test('is an AggregateError when every address of a host fails with one', async () => {
    const error = await new Promise((resolve) => {
      const lookup = (_host: string, _options: object, done: (...found: unknown[]) => void) =>
        done(null, [
          { address: '127.0.0.1', family: 4 },
          { address: '127.0.0.2', family: 4 },
        ])
      const options = { host: 'both.example', port: 1, lookup, autoSelectFamily: true } as NetConnectOpts
      connect(options).on('error', resolve)
    })
    expect(error).toBeInstanceOf(AggregateError)
    expect(getErrno(error)).toBe('ECONNREFUSED')
  })

  test('is neither a bug with a code of Node nor a response to a client', async () => {
    const bugs = [
      caught(() => readFileSync(noPath)),
      await rejected(writeFile('/dev/null', 1 as unknown as string)),
      caught(() => Buffer.alloc(-1)),
      caught(() => new URL('none')),
      new AggregateError([new TypeError('x')]),
    ]
    for (const bug of bugs) {
      expect(getErrno(bug)).toBeUndefined()
      expect(isConnectionFailure(bug)).toBe(false)
    }
    expect(getCode(bugs[0])).toBe('ERR_INVALID_ARG_TYPE')
    expect(getErrno(new OciError('BLOB_UNKNOWN', 404, 'none'))).toBeUndefined()
  })
})

test('a broken connection is a connection failure, although its error names no system call', async () => {
  const server = createServer((socket) => socket.once('data', () => socket.destroy())).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  const error = await new Promise((resolve) => get({ host: '127.0.0.1', port }).on('error', resolve))
  server.close()
  expect([getErrno(error), isConnectionFailure(error)]).toEqual([undefined, true])
})

test('a log entry has the stack of a bug and the message of any other error', () => {
  expect(describeFailure(caught(() => readFileSync(noPath)))).toContain('errors.test.ts')
  expect(describeFailure(caught(() => readFileSync('/no/such/file')))).not.toContain('\n')
  expect(describeFailure(new MirrorError('No.'))).toBe('MirrorError: No.')
})
