import { test } from 'vitest'
import { crashMirror } from '../support/registry-crash.ts'

test('after each of 100 kill -9 everything acknowledged is there, everything deleted is gone, and every tag leads to a complete image', async () => {
  await crashMirror(100)
}, 600_000)
