import { readdir, rm, stat } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { StoreLayout } from './layout.ts'

const keptMs = 7 * 24 * 3_600_000

/** Damaged blobs are kept for a week, for who wants to know what happened to them. Needs the store's lock. */
export async function removeOldQuarantine(layout: StoreLayout, wallNow: number): Promise<void> {
  for (const { path, movedAt } of await listQuarantined(layout))
    if (wallNow - movedAt > keptMs) await rm(path, { recursive: true, force: true })
}

/**
 * Drops damaged blobs, the oldest first, until that many bytes are free. The bytes that went, or with `dryRun` would go; what
 * the disk refuses is said and left. Needs the store's lock.
 */
export async function dropQuarantined(
  layout: StoreLayout,
  { bytes, dryRun, logger }: { bytes: number; dryRun: boolean; logger: Logger },
): Promise<number> {
  let freed = 0
  try {
    for (const { path, size } of await listQuarantined(layout)) {
      if (freed >= bytes) break
      if (!dryRun) await rm(path, { recursive: true, force: true })
      freed += size
    }
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    logger.error({ error: String(error) }, 'could not drop damaged blobs to make room')
  }
  if (freed > 0 && !dryRun) logger.info({ bytes: freed }, 'dropped damaged blobs to make room')
  return freed
}

interface Quarantined {
  readonly path: string
  /** Bytes. */
  readonly size: number
  /** Wall clock ms. */
  readonly movedAt: number
}

/** Those that may go, the oldest first. */
async function listQuarantined(layout: StoreLayout): Promise<Quarantined[]> {
  const found: Quarantined[] = []
  for (const name of await readdir(layout.quarantine)) {
    if (layout.originOf(name) !== undefined) continue
    const path = layout.entry(layout.quarantine, name)
    try {
      const { size, mtimeMs } = await stat(path)
      found.push({ path, size, movedAt: mtimeMs })
    } catch (error) {
      // The sweeper and the scrub may clear away at the same time.
      if (errnoOf(error) !== 'ENOENT') throw error
    }
  }
  return found.toSorted((a, b) => a.movedAt - b.movedAt)
}
