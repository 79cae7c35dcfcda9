import { expect, test } from 'vitest'
import { reserveReached, systemError } from '../../../src/lib/errors.ts'
import { tellUnwritable } from '../../../src/registry/uploads.ts'

test.each([
  [
    'a full disk',
    systemError('ENOSPC', 'write', 'ENOSPC: no space left on device'),
    /^The disk with the data .* is full\./,
  ],
  ['the reserve', reserveReached(5 * 1024 ** 3), /^The disk with the data .* less than 5 GiB .*cache\.minFree/],
])('%s is told as what it is, and where the folder is named', async (_, error, message) => {
  const refused = tellUnwritable(() => Promise.reject(error))
  await expect(refused).rejects.toMatchObject({ status: 507, message: expect.stringMatching(message) })
  await expect(refused).rejects.toThrow('mirror status names its folder')
})

test('a full disk without a reserve is not said to be one with it', async () => {
  const error = systemError('ENOSPC', 'write', 'ENOSPC: no space left on device')
  await expect(tellUnwritable(() => Promise.reject(error))).rejects.not.toThrow('minFree')
})
