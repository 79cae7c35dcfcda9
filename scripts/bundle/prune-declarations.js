import { readFileSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'

const imports = /(?:from|import\()\s*['"](\.[^'"]+)['"]/g

/**
 * Removes the declarations that the entry does not reach, because tsc writes one for each source file. The remaining ones import
 * only each other and Node's own modules (test/cli/package.test.ts).
 */
export function pruneDeclarations(folder, entry) {
  const reached = new Set([entry])
  for (const file of reached) {
    const text = readFileSync(join(folder, file), 'utf8')
    for (const [, name] of text.matchAll(imports))
      reached.add(join(dirname(file), name.replace(/(\.d)?\.[jt]s$/, '.d.ts')))
  }
  for (const path of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    if (path.endsWith('.d.ts') && !reached.has(relative('.', path))) rmSync(join(folder, path))
  }
}
