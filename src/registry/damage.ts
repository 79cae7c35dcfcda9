import { readdir } from 'node:fs/promises'
import { getErrno } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import { countDamagedLines } from '../metadata/log.ts'
import type { LogDamage } from '../metadata/log.ts'
import type { StoreLayout } from '../store/layout.ts'

/** Describes a repository of the local registry whose record is damaged. */
export interface DamagedRepository {
  /** Is undefined when the name cannot be read. */
  readonly name: string | undefined
  /** Names the file with the damaged lines. */
  readonly path: string
  /** Names the file from which they come. */
  readonly original: string
  readonly reason: string
  /** Is true when the repository is served without the damaged lines. */
  readonly isServed: boolean
}

/** Matches the names that `layout.setAside` gives to damaged lines, and to damaged journals of release 0.1. */
const damagedLinesPattern = /^(?:\d{16}\.(?:log|checkpoint)|.+\.jsonl)-/

interface QuarantinedDamage {
  /** Is true when there is any file that may describe content of the store. */
  readonly isAny: boolean
  readonly repositories: DamagedRepository[]
}

/** Lists the damaged records in the quarantine. Copies stay there for a week, the other records until the user removes them. */
export async function listQuarantinedDamage(layout: StoreLayout): Promise<QuarantinedDamage> {
  const repositories: DamagedRepository[] = []
  let isAny = false
  for (const file of ((await ignoreMissing(() => readdir(layout.quarantine))) ?? []).toSorted()) {
    const path = layout.entry(layout.quarantine, file)
    const origin = layout.originOf(file)
    const isOfLines = origin === undefined && damagedLinesPattern.test(file)
    isAny ||= isOfLines || origin !== undefined
    if (isOfLines) {
      const original = layout.entry(layout.metadata, file.slice(0, file.lastIndexOf('-')))
      repositories.push(...toReports(await countLines(path), path, original))
    } else if (origin !== undefined) repositories.push(describeEarlierRecord(path, origin))
  }
  return { isAny, repositories }
}

/** Describes damaged lines that could not be copied to the quarantine. */
export function describeUnkeptDamage(damage: readonly LogDamage[]): DamagedRepository[] {
  const path = damage[0]?.path ?? ''
  const counts = new Map<string | undefined, number>()
  for (const { repository } of damage) counts.set(repository, (counts.get(repository) ?? 0) + 1)
  return toReports(counts, path, path)
}

/** Counts the damaged lines by repository; those of a file that cannot be read as one line without a repository. */
async function countLines(path: string): Promise<ReadonlyMap<string | undefined, number>> {
  try {
    return await countDamagedLines(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return new Map([[undefined, 1]])
  }
}

function toReports(
  counts: ReadonlyMap<string | undefined, number>,
  path: string,
  original: string,
): DamagedRepository[] {
  return Array.from(counts, ([repository, count]) => {
    const lines = count === 1 ? '1 damaged line was' : `${count} damaged lines were`
    return {
      name: repository?.slice(repository.indexOf('/') + 1),
      path,
      original,
      reason: `${lines} skipped: push the missing images again`,
      isServed: true,
    }
  })
}

function describeEarlierRecord(path: string, original: string): DamagedRepository {
  const reason =
    'release 0.1 could not read it, and nothing is deleted while it is there: push the missing images again, then remove the file'
  return { name: undefined, path, original, reason, isServed: false }
}
