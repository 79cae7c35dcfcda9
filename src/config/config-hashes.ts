import { createHash } from 'node:crypto'
import type { Config } from './config.ts'

/** A short hash of each top-level part, so that a running mirror can say what it was started with without repeating it. */
export function configHashes(config: Config, dataDir: string): Record<string, string> {
  const parts = Object.entries({ ...config, data: dataDir })
  return Object.fromEntries(parts.map(([key, value]) => [key, hash(value)]))
}

/** The parts that differ, in the order of the configuration. */
export function changedParts(
  before: Readonly<Record<string, string>>,
  now: Readonly<Record<string, string>>,
): string[] {
  return Object.keys(now).filter((key) => before[key] !== now[key])
}

function hash(value: unknown): string {
  return createHash('sha256')
    .update(JSON.stringify(value, sorted) ?? '')
    .digest('hex')
    .slice(0, 16)
}

/** The order in which a file names its keys means nothing. */
function sorted(_key: string, value: unknown): unknown {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1)))
}
