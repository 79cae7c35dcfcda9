import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { openStore } from '../../src/store/open-store.ts'
import { systemClock } from '../../src/lib/time.ts'
import { MirrorError } from '../../src/lib/errors.ts'
import { silentLogger } from '../../src/lib/logger.ts'

const source = fileURLToPath(new URL('../../src', import.meta.url))

test('no next step is a sentence that goes on from the one before: that one may be missing', async () => {
  const dangling: string[] = []
  for (const entry of await readdir(source, { recursive: true })) {
    if (!entry.endsWith('.ts')) continue
    const text = await readFile(join(source, entry), 'utf8')
    for (const [literal] of text.matchAll(/['"`](?:or|otherwise) [^\n]*/gi)) dangling.push(`${entry}: ${literal}`)
  }
  expect(dangling).toEqual([])
})

test.skipIf(process.platform !== 'linux')(
  'a folder where none can be made is refused with a whole sentence',
  async () => {
    const opening = openStore(
      {
        root: '/proc/no-such/cache',
        verifyReads: 'auto',
        minFree: 0,
        logger: silentLogger,
        clock: systemClock,
      },
      () => Promise.reject(new Error('unreachable')),
    )
    await expect(opening).rejects.toBeInstanceOf(MirrorError)
    await expect(opening).rejects.toMatchObject({
      message: 'Cannot use the folder /proc/no-such/cache for the store: the folder cannot be created (ENOENT).',
      hints: ['Use another folder: mirror up --data DIR, or MIRROR_HOME=DIR mirror up'],
    })
  },
)
