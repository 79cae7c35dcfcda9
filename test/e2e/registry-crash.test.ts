import { test } from 'vitest'
import { crashRegistry } from '../support/registry-crash.ts'

test('what was answered with 201 is there after each of 30 kill -9', async () => {
  await crashRegistry(30)
})
