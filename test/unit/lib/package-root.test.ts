import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { findPackageRoot } from '../../../src/lib/fs.ts'

test('packageRoot is the folder with package.json', async () => {
  expect(JSON.parse(await readFile(join(findPackageRoot(), 'package.json'), 'utf8'))).toMatchObject({
    name: 'dev-mirror',
  })
})
