import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'

const src = join(dirname(fileURLToPath(import.meta.url)), '..', 'src')

// Levels from the table of docs/architecture.md: a room imports from lower levels and from itself, never from a room of its level.
const levels: Record<string, number> = {
  lib: 0,
  oci: 1,
  stats: 2,
  store: 2,
  metadata: 2,
  upstream: 2,
  config: 2,
  docker: 2,
  cache: 3,
  registry: 3,
  server: 4,
  admin: 5,
  clients: 6,
  daemon: 6,
  demo: 7,
  doctor: 7,
  cli: 8,
  commands: 9,
}

// Levels of the subfolders in their room; folders of one level never import each other.
const folderLevels: Record<string, Record<string, number>> = {
  admin: { dashboard: 0, trace: 0 },
  cache: { download: 0 },
  clients: { edit: 0, files: 1, containerd: 2, docker: 3, podman: 3, kind: 3, buildkit: 4, k3s: 4 },
  cli: { render: 0 },
  commands: { cache: 0, credentials: 0, registry: 0 },
  daemon: { container: 0 },
  server: { send: 0 },
}

// Files that may import a heavy library.
const doors: Record<string, RegExp> = {
  dockerode: /^docker\/dockerode(-engine)?\.ts$/,
  execa: /^lib\/process\.ts$/,
  inquirer: /^cli\/terminal\.ts$/,
  '@iarna/toml': /^clients\/edit\/toml\.ts$/,
  'smol-toml': /^clients\/edit\/toml\.ts$/,
  yaml: /^(clients\/|config\/parse\.ts$)/,
  'jsonc-parser': /^clients\//,
  diff: /^cli\/render\/configure\.ts$/,
  '@oclif/core': /^(cli|commands)\//,
  undici: /^upstream\/(undici|proxy)\.ts$/,
  socks: /^upstream\/proxy\.ts$/,
  bcryptjs: /^server\/passwords\.ts$/,
  koffi: /^server\/send\/sendfile\.ts$/,
  'prom-client': /^admin\/status\.ts$/,
}

const files = readdirSync(src, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'))
const texts = new Map(files.map((file) => [file, readFileSync(join(src, file), 'utf8')]))
const roomOf = (file: string) => (file.includes('/') ? file.split('/')[0]! : 'index')
/** Returns the folder below the room; undefined for a file of the room itself. */
const folderOf = (file: string) => file.split('/').slice(1, -1)[0]

/** Lists every module that an import, an export … from, or an import() of the file names. */
function importsOf(file: string): string[] {
  const named =
    /(?:^|\n)\s*(?:import|export)\s[^'"]*?from\s*'([^']+)'|import\(\s*'([^']+)'\s*\)|(?:^|\n)import\s+'([^']+)'/g
  return [...texts.get(file)!.matchAll(named)].map((match) => (match[1] ?? match[2] ?? match[3])!)
}

/** Lists the files of src that the file imports. */
function importedFiles(file: string): string[] {
  return importsOf(file)
    .filter((name) => name.startsWith('.'))
    .map((name) => relative(src, resolve(src, dirname(file), name)))
    .filter((target) => texts.has(target))
}

describe('the imports of src', () => {
  test.each(files)('%s imports only from lower rooms', (file) => {
    const room = roomOf(file)
    for (const name of importsOf(file).filter((name) => !name.startsWith('.'))) {
      const door = Object.entries(doors).find(([library]) => name === library || name.startsWith(`${library}/`))
      if (door) expect(file, `${name} has one door`).toMatch(door[1])
    }
    if (room === 'index') return
    expect(Object.keys(levels), `${room} has a level`).toContain(room)
    for (const target of importedFiles(file)) {
      if (roomOf(target) !== room)
        expect(levels[roomOf(target)], `${file} imports ${target}`).toBeLessThan(levels[room]!)
    }
  })

  test.each(files.filter((file) => folderOf(file) !== undefined))(
    '%s imports only from lower folders of its room',
    (file) => {
      const [room, folder] = [roomOf(file), folderOf(file)!]
      const own = folderLevels[room]?.[folder]
      expect(own, `${room}/${folder} has a level`).toBeDefined()
      for (const target of importedFiles(file)) {
        const other = folderOf(target)
        if (roomOf(target) !== room || other === undefined || other === folder) continue
        expect(folderLevels[room]![other], `${file} imports ${target}`).toBeLessThan(own!)
      }
    },
  )

  test('have no cycle, neither direct nor through other files', () => {
    const visited = new Set<string>()
    const visit = (file: string, path: readonly string[]) => {
      expect(path, 'a cycle of imports').not.toContain(file)
      if (visited.has(file)) return
      for (const target of importedFiles(file)) visit(target, [...path, file])
      visited.add(file)
    }
    for (const file of files) visit(file, [])
  })
})

describe('the shape of src', () => {
  const lines = new Map([...texts].map(([file, text]) => [file, text.split('\n').length - 1]))
  const sizes = [...lines.values()].toSorted((a, b) => a - b)

  test('has at most 280 files, with a median of at least 120 lines', () => {
    const median = sizes[Math.floor(sizes.length / 2)]!
    console.log(
      `src: ${files.length} files, ${sizes.reduce((sum, size) => sum + size, 0)} lines, median ${median}, ` +
        `${sizes.filter((size) => size < 30).length} below 30 lines, the longest ${sizes.at(-1)}`,
    )
    expect(files.length).toBeLessThanOrEqual(280)
    expect(median).toBeGreaterThanOrEqual(120)
  })

  test('has at most 15 files with fewer than 30 lines', () => {
    expect(sizes.filter((size) => size < 30).length).toBeLessThanOrEqual(15)
  })

  test.each(files)('%s has at most 400 lines', (file) => {
    expect(lines.get(file)).toBeLessThanOrEqual(400)
  })

  test('has at most 17 files in each folder', () => {
    for (const folder of new Set(files.map((file) => dirname(file))))
      expect(files.filter((file) => dirname(file) === folder).length, folder).toBeLessThanOrEqual(17)
  })
})

describe('the timers of src', () => {
  const others = files.filter((file) => file !== 'lib/time.ts')

  // Use `every` and `later` of lib/time.ts, because a callback that throws or rejects ends the process; they catch both.
  test.each(others)('%s calls no setInterval', (file) => {
    expect(texts.get(file)).not.toMatch(/\bsetInterval\(/)
  })

  test.each(others)('%s passes no asynchronous callback to setTimeout or setImmediate', (file) => {
    expect(texts.get(file)).not.toMatch(
      /\bsetTimeout\(\s*(async\b|\(\)\s*=>\s*\(?void\b|\(\)\s*=>\s*\{[^}]*\b(void|await)\b)/,
    )
    expect(texts.get(file)).not.toMatch(/\bsetImmediate\(\s*(async\b|\(\)\s*=>\s*\(?void\b)/)
  })
})

describe('the objects of a request', () => {
  // Avoid getters, because V8 keeps objects with accessors alive until the next full collection (decision 0010).
  test.each(files.filter((file) => file.startsWith('server/')))('have no getter in %s', (file) => {
    expect(texts.get(file)).not.toMatch(/^ {4,}get \w+\(/m)
  })
})
