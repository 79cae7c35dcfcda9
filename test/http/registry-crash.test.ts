import { test } from 'vitest'
import { crashRegistry } from '../support/registry-crash.ts'

// The same at greater length: test/e2e/registry-crash.test.ts
test('a push that was answered with 201 survives kill -9', async () => {
  await crashRegistry(3)
})
