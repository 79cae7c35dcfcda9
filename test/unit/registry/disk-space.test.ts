import { expect, test } from 'vitest'
import { createReserveError, createSystemError } from '../../../src/lib/errors.ts'
import { translateDiskErrors } from '../../../src/registry/uploads.ts'

test.each([
  [
    'a full disk',
    createSystemError('ENOSPC', 'write', 'ENOSPC: no space left on device'),
    /^The disk with the mirror's data is full\./,
  ],
  [
    'the reserve',
    createReserveError(5 * 1024 ** 3),
    /^The disk with the mirror's data .* less than 5 GiB .*cache\.minFree/,
  ],
])('the error for %s names the cause, and the command that names the folder', async (_, error, message) => {
  const refused = translateDiskErrors(() => Promise.reject(error))
  await expect(refused).rejects.toMatchObject({ status: 507, message: expect.stringMatching(message) })
  await expect(refused).rejects.toThrow('mirror status names the folder')
})

test('the error for a full disk does not mention the reserve', async () => {
  const error = createSystemError('ENOSPC', 'write', 'ENOSPC: no space left on device')
  await expect(translateDiskErrors(() => Promise.reject(error))).rejects.not.toThrow('minFree')
})
