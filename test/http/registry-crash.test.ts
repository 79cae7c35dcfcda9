import { test } from 'vitest'
import { crashMirror } from '../support/registry-crash.ts'

// See test/e2e/metadata-crash.test.ts for the long version.
test('a push that was answered with 201 survives kill -9', async () => {
  await crashMirror(3)
})
