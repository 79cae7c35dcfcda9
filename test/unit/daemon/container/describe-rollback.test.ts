import { expect, test } from 'vitest'
import { MirrorError } from '../../../../src/lib/errors.ts'
import { DockerError } from '../../../../src/docker/engine.ts'
import { addRollbackResult } from '../../../../src/daemon/container/stop.ts'

const calm = new AbortController().signal
const refusal = new MirrorError('It is gone.')

test('a refusal of the engine is reported together with the result of the rollback', () => {
  expect(addRollbackResult(new DockerError(500, 'no such thing'), { refusal, signal: calm })).toMatchObject({
    name: 'MirrorError',
    message: 'The Docker engine refuses: no such thing. The mirror that ran before could not be restored: It is gone.',
    exit: 1,
  })
})

test('a failure during an interrupt is reported, because the mirror before was changed', () => {
  const signal = AbortSignal.abort()
  expect(addRollbackResult(new MirrorError('Port 1 is taken.'), { refusal, signal })).toMatchObject({
    message: 'Port 1 is taken. The mirror that ran before could not be restored: It is gone.',
    exit: 130,
  })
})

test('a bug is reported unchanged', () => {
  const bug = new TypeError('oops')
  expect(addRollbackResult(bug, { refusal, signal: calm })).toBe(bug)
})
