import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'

const src = join(dirname(fileURLToPath(import.meta.url)), '..', 'src')

// The table of docs/architecture.md: a room imports from lower levels and from itself.
const levels: Record<string, number> = {
  lib: 0,
  oci: 1,
  store: 2,
  upstream: 2,
  clients: 2,
  config: 2,
  registry: 3,
  server: 4,
  runtime: 5,
  app: 6,
  cli: 7,
  commands: 7,
}

// Each heavy library has one doorkeeper (files, or rooms).
const doors: Record<string, RegExp> = {
  dockerode: /^runtime\/dockerode-[a-z-]+\.ts$/,
  execa: /^lib\/run-command\.ts$/,
  inquirer: /^cli\/prompt\.ts$/,
  '@iarna/toml': /^clients\/read-toml\.ts$/,
  'smol-toml': /^clients\/read-toml\.ts$/,
  yaml: /^(clients|config)\//,
  'jsonc-parser': /^clients\//,
  diff: /^cli\/render-diff\.ts$/,
  '@oclif/core': /^(cli|commands)\//,
  undici: /^upstream\/(agents|dispatch|socks-connector)\.ts$/,
  socks: /^upstream\/socks-connector\.ts$/,
  bcryptjs: /^server\/password-thread\.ts$/,
  koffi: /^server\/kernel\.ts$/,
  'prom-client': /^server\/metrics\.ts$/,
}

const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))

/** Every module named by an import, an export … from, or an import() of the file. */
function importsOf(file: string): string[] {
  const text = readFileSync(join(src, file), 'utf8')
  const named =
    /(?:^|\n)\s*(?:import|export)\s[^'"]*?from\s*'([^']+)'|import\(\s*'([^']+)'\s*\)|(?:^|\n)import\s+'([^']+)'/g
  return [...text.matchAll(named)].map((match) => (match[1] ?? match[2] ?? match[3])!)
}

describe('the rooms of src', () => {
  test.each(files)('%s imports only from below', (file) => {
    const room = file.includes('/') ? file.split('/')[0]! : 'index'
    for (const name of importsOf(file)) {
      if (!name.startsWith('.')) {
        const door = Object.entries(doors).find(([library]) => name === library || name.startsWith(`${library}/`))
        if (door) expect(file, `${name} has one doorkeeper`).toMatch(door[1])
        continue
      }
      const target = relative(src, resolve(src, dirname(file), name)).split('/')[0]!
      if (room === 'index' || target === room || target === '..') continue
      // cli and commands share a level and meet: commands stand on cli.
      if (room === 'commands' && target === 'cli') continue
      expect(levels[target], `${file} imports ${name}`).toBeLessThan(levels[room]!)
    }
  })

  test.each(files)('%s stays below 300 lines', (file) => {
    expect(readFileSync(join(src, file), 'utf8').split('\n').length).toBeLessThanOrEqual(301)
  })
})

describe('the timers of src', () => {
  // A callback that throws, or whose promise rejects, ends the process. `lib/every.ts` catches both.
  test.each(files.filter((file) => file !== 'lib/every.ts'))('%s repeats nothing by a timer of its own', (file) => {
    expect(readFileSync(join(src, file), 'utf8')).not.toMatch(/\bsetInterval\(/)
  })

  test.each(files.filter((file) => file !== 'lib/every.ts'))(
    '%s starts nothing asynchronous by a bare timer',
    (file) => {
      const text = readFileSync(join(src, file), 'utf8')
      expect(text).not.toMatch(/\bsetTimeout\(\s*(async\b|\(\)\s*=>\s*\(?void\b|\(\)\s*=>\s*\{[^}]*\b(void|await)\b)/)
      expect(text).not.toMatch(/\bsetImmediate\(\s*(async\b|\(\)\s*=>\s*\(?void\b)/)
    },
  )
})

describe('what is made for every request', () => {
  // V8 keeps objects with accessors of their own alive until the next full collection (decision 0010).
  test.each(files.filter((file) => file.startsWith('server/')))(
    'in %s is no object with a getter of its own',
    (file) => {
      expect(readFileSync(join(src, file), 'utf8')).not.toMatch(/^ {4,}get \w+\(/m)
    },
  )
})
