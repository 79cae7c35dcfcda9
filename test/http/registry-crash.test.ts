import { test } from 'vitest'
import { crashRegistry } from '../support/registry-crash.ts'

// See test/e2e/registry-crash.test.ts for the long version.
test('a push that was answered with 201 survives kill -9', async () => {
  await crashRegistry(3)
})
