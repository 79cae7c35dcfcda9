import { readFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { forEachInTurn } from '../../../src/cli/configure-flow.ts'
import { MirrorError, exitCode, combineExitCodes } from '../../../src/lib/errors.ts'

const refused = new MirrorError('No.', { exit: exitCode.usage })

async function actOn(things: readonly (string | Error)[]) {
  const failures: string[] = []
  const act = (thing: string | Error) => (typeof thing === 'string' ? Promise.resolve(thing) : Promise.reject(thing))
  const { done, failed } = await forEachInTurn(things, act, (_, error) => failures.push(error.message))
  return { done, failed, failures }
}

test('a failure of one item is reported, and the others are still done', async () => {
  const missing = await readFile('/nowhere/at/all').catch((error: Error) => error)
  expect(await actOn(['one', refused, 'two', missing as Error, 'three'])).toEqual({
    done: ['one', 'two', 'three'],
    failed: [exitCode.usage, exitCode.failed],
    failures: ['No.', expect.stringContaining('ENOENT')],
  })
})

test('the failure of a single item, a bug and an interruption end the sequence', async () => {
  await expect(actOn([refused])).rejects.toBe(refused)
  await expect(actOn([new TypeError('bug'), 'one'])).rejects.toThrow('bug')
  const interrupted = new MirrorError('Interrupted.', { exit: exitCode.interrupted })
  await expect(actOn([interrupted, 'one'])).rejects.toBe(interrupted)
})

test('the gravest of several exit codes is the lowest one', () => {
  expect(combineExitCodes([exitCode.done])).toBe(exitCode.done)
  expect(combineExitCodes([exitCode.checkFailed, exitCode.usage, exitCode.missing])).toBe(exitCode.usage)
  expect(combineExitCodes([exitCode.missing, exitCode.failed])).toBe(exitCode.failed)
})
