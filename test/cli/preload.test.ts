import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { packageRoot } from '../../src/lib/package-root.ts'

const src = join(packageRoot(), 'src')

/** What the start of a server loads by itself, before it says that it is ready. */
const loadedByTheStart = new Set([
  // Asked once whether another mirror runs in a container.
  'admin/state.ts ../docker/dockerode-engine.ts',
  'config/load.ts ./parse.ts',
  'daemon/logging.ts pino',
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

/** Every `import()` that a server can come to: its file and what it names. */
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

/** What the functions that `preload` of compose.ts calls load. */
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

test('every module that a running server loads later is loaded before it says that it is ready', () => {
  const later = lazyImportsFrom('daemon/serve.ts')
  expect(later.filter((name) => !loadedByTheStart.has(name))).toEqual(preloaded())
  expect([...loadedByTheStart].filter((name) => !later.includes(name))).toEqual([])
})
