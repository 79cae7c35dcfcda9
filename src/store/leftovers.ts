import { readdir, rm } from 'node:fs/promises'
import type { StoreLayout } from './layout.ts'
import { removeOldQuarantine } from './quarantine.ts'

/** Clears away what dead processes left half done, and old damaged blobs. Needs the store's lock. */
export async function removeLeftovers(layout: StoreLayout, wallNow: number): Promise<void> {
  await removeEntries(layout, layout.temporary, () => true)
  // Atomic writes go through a hidden file beside their target.
  await removeEntries(layout, layout.home, (name) => name.startsWith('.'))
  await removeEntries(layout, layout.repositories, (name) => name.startsWith('.'))
  await removeOldQuarantine(layout, wallNow)
}

async function removeEntries(layout: StoreLayout, folder: string, isLeft: (name: string) => boolean): Promise<void> {
  for (const name of await readdir(folder))
    if (isLeft(name)) await rm(layout.entry(folder, name), { recursive: true, force: true })
}
