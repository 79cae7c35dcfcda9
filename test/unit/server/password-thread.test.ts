import { hash } from 'bcryptjs'
import { expect, test } from 'vitest'
import { startPasswordThread } from '../../../src/server/passwords.ts'

test('a password is compared on another thread, in every form of bcrypt', async () => {
  const thread = await startPasswordThread()
  try {
    const made = await hash('s3:crét', 4)
    for (const version of ['2a', '2b', '2y']) {
      const stored = made.replace(/^\$2b/, `$${version}`)
      expect(await thread.compare('s3:crét', stored)).toBe(true)
      expect(await thread.compare('s3:cret', stored)).toBe(false)
    }
    expect(await thread.compare('anything', `$2b$04$${'.'.repeat(53)}`)).toBe(false)
  } finally {
    await thread.close()
  }
  await expect(thread.compare('late', await hash('late', 4))).rejects.toThrow()
})
