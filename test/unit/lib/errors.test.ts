import { readFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { get } from 'node:http'
import { connect, createServer, type AddressInfo, type NetConnectOpts } from 'node:net'
import { setPriority } from 'node:os'
import { describe, expect, test } from 'vitest'
import {
  codeOf,
  describeFailure,
  errnoOf,
  isConnectionFailure,
  MirrorError,
  systemError,
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
  test('is what a call to the system fails with', async () => {
    expect(errnoOf(caught(() => readFileSync('/no/such/file')))).toBe('ENOENT')
    expect(errnoOf(await rejected(readFile('/')))).toBe('EISDIR')
    expect(errnoOf(caught(() => process.kill(2 ** 30, 0)))).toBe('ESRCH')
    expect(errnoOf(systemError('ENOSPC', 'write', 'no space'))).toBe('ENOSPC')
  })

  test('has the system’s code, though node:os puts one of its own before it', () => {
    const error = caught(() => setPriority(2 ** 30, 0))
    expect([codeOf(error), errnoOf(error)]).toEqual(['ERR_SYSTEM_ERROR', 'ESRCH'])
  })

  test('is what every address of a host fails with', async () => {
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
    expect(errnoOf(error)).toBe('ECONNREFUSED')
  })

  test('is no bug of ours that Node has a code for, and no answer to a client', async () => {
    const bugs = [
      caught(() => readFileSync(noPath)),
      await rejected(writeFile('/dev/null', 1 as unknown as string)),
      caught(() => Buffer.alloc(-1)),
      caught(() => new URL('none')),
      new AggregateError([new TypeError('x')]),
    ]
    for (const bug of bugs) {
      expect(errnoOf(bug)).toBeUndefined()
      expect(isConnectionFailure(bug)).toBe(false)
    }
    expect(codeOf(bugs[0])).toBe('ERR_INVALID_ARG_TYPE')
    expect(errnoOf(new OciError('BLOB_UNKNOWN', 404, 'none'))).toBeUndefined()
  })
})

test('a connection that breaks is a failure of the connection, though it names no call', async () => {
  const server = createServer((socket) => socket.once('data', () => socket.destroy())).listen(0, '127.0.0.1')
  await new Promise((resolve) => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  const error = await new Promise((resolve) => get({ host: '127.0.0.1', port }).on('error', resolve))
  server.close()
  expect([errnoOf(error), isConnectionFailure(error)]).toEqual([undefined, true])
})

test('a log tells where a bug is, and of everything else what it says', () => {
  expect(describeFailure(caught(() => readFileSync(noPath)))).toContain('errors.test.ts')
  expect(describeFailure(caught(() => readFileSync('/no/such/file')))).not.toContain('\n')
  expect(describeFailure(new MirrorError('No.'))).toBe('MirrorError: No.')
})
