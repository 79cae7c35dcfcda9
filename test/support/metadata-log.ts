import { open, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { silentLogger } from '../../src/lib/logger.ts'
import { systemClock } from '../../src/lib/time.ts'
import type { MetadataStore } from '../../src/metadata/metadata-store.ts'
import { type MetadataOptions, openMetadata as openLog } from '../../src/metadata/open-metadata.ts'
import { createStoreLayout } from '../../src/store/layout.ts'

/** Opens the metadata store in the folder `metadata` of the root; closes it when the test ends. Damaged lines go to the folder `aside`. */
export async function openMetadata(root: string, options: Partial<MetadataOptions> = {}): Promise<MetadataStore> {
  const store = await openLog({
    folder: join(root, 'metadata'),
    previousFolder: join(root, 'repositories'),
    isNew: async () => true,
    countsHolders: true,
    setAside: (path) => join(root, 'aside', `${path.slice(path.lastIndexOf('/') + 1)}-${Math.random()}`),
    logger: silentLogger,
    clock: systemClock,
    ...options,
  })
  onTestFinished(() => store.close())
  return store
}

/** Runs the body with the metadata store at the root, and closes it. */
export async function withMetadata<T>(root: string, body: (store: MetadataStore) => Promise<T>): Promise<T> {
  const store = await openMetadata(root)
  try {
    return await body(store)
  } finally {
    await store.close()
  }
}

/** Replaces the log in this folder by a file, so that writes fail; the result lets them succeed again. */
export async function breakLog(folder: string): Promise<() => Promise<void>> {
  await rm(folder, { recursive: true })
  await writeFile(folder, '')
  return () => rm(folder)
}

/** Lists the paths of the files of a log, checkpoint first. */
export async function listLog(folder: string): Promise<string[]> {
  const names = await readdir(folder)
  const order = (name: string) => (name.endsWith('.checkpoint') ? 0 : 1)
  return names.toSorted((a, b) => order(a) - order(b) || (a < b ? -1 : 1)).map((name) => join(folder, name))
}

/** Replaces a text in the only file of the log that has it. */
export async function damageLog(folder: string, change: (text: string) => string): Promise<string> {
  for (const path of await listLog(folder)) {
    const before = await readFile(path, 'utf8')
    const after = change(before)
    if (after === before) continue
    await writeFile(path, after)
    return path
  }
  throw new Error(`no file in ${folder} was changed`)
}

/** Counts the syncs of file contents until the test ends. */
export async function countSyncs(root: string): Promise<{ count: number }> {
  const file = await open(root)
  const prototype = Object.getPrototypeOf(file) as typeof file
  await file.close()
  const { datasync } = prototype
  const syncs = { count: 0 }
  prototype.datasync = function () {
    syncs.count += 1
    return datasync.call(this)
  }
  onTestFinished(() => void (prototype.datasync = datasync))
  return syncs
}

/** Returns the layout of the registry's store in a home, and the folder of its log. */
export function findRegistryStore(home: string) {
  const layout = createStoreLayout(join(home, 'data', 'registry'))
  return { layout, logFolder: layout.metadata }
}
