import { writeFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { BlobIndex } from '../../../src/store/blob-store.ts'
import { makeStoreFolders, createStoreLayout } from '../../../src/store/layout.ts'
import { digestFor } from '../../support/metadata.ts'
import { temporaryFolder } from '../../support/store/store.ts'

test('changes during the scan of the disk take precedence over its findings', async () => {
  const layout = createStoreLayout(await temporaryFolder())
  await makeStoreFolders(layout)
  for (const name of ['kept', 'removed', 'replaced', 'back']) await writeFile(layout.blob(digestFor(name)), '12345')
  const index = new BlobIndex()
  const scan = index.scan(layout, new AbortController().signal)
  // Changes the index but not the files, because the scan may have read their sizes just before the removal.
  index.delete(digestFor('removed'))
  index.set(digestFor('replaced'), 7)
  index.delete(digestFor('back'))
  index.set(digestFor('back'), 6)
  await scan
  expect(Object.fromEntries(index.sizes)).toEqual({
    [digestFor('kept')]: 5,
    [digestFor('replaced')]: 7,
    [digestFor('back')]: 6,
  })
  expect(index.bytes).toBe(18)
})

test('an aborted scan of the disk ends', async () => {
  const layout = createStoreLayout(await temporaryFolder())
  await makeStoreFolders(layout)
  await writeFile(layout.blob(digestFor('one')), '12345')
  const index = new BlobIndex()
  await index.scan(layout, AbortSignal.abort())
  expect(index.sizes.size).toBe(0)
})
