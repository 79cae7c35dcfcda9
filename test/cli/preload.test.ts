import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'

const src = join(findPackageRoot(), 'src')

/** Modules that the start of a server loads itself before it reports ready. */
const loadedByTheStart = new Set([
  // Used once, to find a mirror that runs in a container.
  'admin/state.ts ../docker/dockerode-engine.ts',
  'config/load.ts ./parse.ts',
  'lib/logger.ts pino',
  'server/send/sendfile.ts koffi',
])

interface Imports {
  readonly now: readonly string[]
  readonly later: readonly string[]
}

function importsOf(file: string): Imports {
  const text = readFileSync(join(src, file), 'utf8')
  const now = [...text.matchAll(/(?:^|\n)\s*(?:import|export)\s(?!type\s)[^'"]*?from\s*'(\.[^']+)'/g)]
  const later = [...text.matchAll(/\bimport\(\s*'([^']+)'/g)]
  return { now: now.map((match) => match[1]!), later: later.map((match) => match[1]!) }
}

/** Finds every `import()` that a server can reach, as its file and its specifier. */
function lazyImportsFrom(entry: string): string[] {
  const files = new Set([entry])
  const found: string[] = []
  for (const file of files) {
    const { now, later } = importsOf(file)
    for (const name of later) found.push(`${file} ${name}`)
    for (const name of [...now, ...later]) if (name.startsWith('.')) files.add(join(dirname(file), name))
  }
  return found.toSorted()
}

/** Lists the modules that `preload` of compose.ts loads. */
function preloaded(): string[] {
  const text = readFileSync(join(src, 'daemon', 'compose.ts'), 'utf8')
  const body = text.split('async function preload(')[1]!.split('\n}')[0]!
  const loaders = [...body.matchAll(/await (\w+)\(\)/g)].map((match) => match[1]!)
  expect(loaders).not.toEqual([])
  return loaders
    .flatMap((loader) => {
      const path = new RegExp(`import \\{[^}]*\\b${loader}\\b[^}]*\\} from '(\\.[^']+)'`).exec(text)![1]!
      const file = join('daemon', path)
      const door = readFileSync(join(src, file), 'utf8').split(`export const ${loader} = `)[1]!.split('\n')[0]!
      return [...door.matchAll(/\bimport\('([^']+)'\)/g)].map((match) => `${file} ${match[1]}`)
    })
    .toSorted()
}

test('the server loads every module that it needs later before it reports ready', () => {
  const later = lazyImportsFrom('daemon/serve.ts')
  expect(later.filter((name) => !loadedByTheStart.has(name))).toEqual(preloaded())
  expect([...loadedByTheStart].filter((name) => !later.includes(name))).toEqual([])
})
