import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { packageRoot } from '../../src/lib/package-root.ts'

const src = join(packageRoot(), 'src')

/** What the start of a server loads by itself, before it says that it is ready. */
const loadedByTheStart = new Set([
  'app/create-logger.ts pino',
  'config/load-config.ts ./parse-config.ts',
  // Asked whether another mirror runs in a container, once.
  'runtime/state-file.ts ./container-life.ts',
  'runtime/container-life.ts ./dockerode-container-engine.ts',
  'server/kernel.ts koffi',
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

/** What the functions that preload.ts calls load. */
function preloaded(): string[] {
  const text = readFileSync(join(src, 'app', 'preload.ts'), 'utf8')
  const doors = [...text.matchAll(/import \{ (\w+) \} from '(\.[^']+)'/g)]
  return doors
    .flatMap(([, loader, path]) => {
      expect(text, `${loader} is called`).toContain(`${loader}()`)
      const file = join('app', path!)
      const body = readFileSync(join(src, file), 'utf8').split(`export const ${loader} = `)[1]!.split('\n')[0]!
      return [...body.matchAll(/\bimport\('([^']+)'\)/g)].map((match) => `${file} ${match[1]}`)
    })
    .toSorted()
}

test('every module that a running server loads later is loaded before it says that it is ready', () => {
  const later = lazyImportsFrom('app/serve-mirror.ts')
  expect(later.filter((name) => !loadedByTheStart.has(name))).toEqual(preloaded())
  expect([...loadedByTheStart].filter((name) => !later.includes(name))).toEqual([])
})
