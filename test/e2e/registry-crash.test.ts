import { test } from 'vitest'
import { crashRegistry } from '../support/registry-crash.ts'

test('every push that got 201 is there after each of 30 kill -9', async () => {
  await crashRegistry(30)
})
