import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Returns the folder of this package, whether this code runs from the sources or from the bundle. Throws when there is none. */
export function findPackageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  let folder = start
  while (!existsSync(join(folder, 'package.json'))) {
    if (folder === dirname(folder)) throw new Error(`No package.json at or above ${start}`)
    folder = dirname(folder)
  }
  return folder
}
