import { spawnSync } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const docs = readdirSync(join(root, 'docs'), { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.md'))
  .map((file) => join('docs', file))
const pages = ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', ...docs]

/** Lists the targets and titles of links: `[text](target 'title')`. */
function linksOf(page: string): { target: string; title: string | undefined }[] {
  const text = readFileSync(join(root, page), 'utf8').replaceAll(/^```[\s\S]*?^```/gm, '')
  return [...text.matchAll(/\]\(([^)\s]+)(?:\s+(["'])(.*?)\2)?\)/g)].map(([, target, , title]) => ({
    target: target!,
    title,
  }))
}

test.each(pages)('%s links only to files that exist', (page) => {
  const missing = linksOf(page)
    .map(({ target }) => target.split('#')[0]!)
    .filter((target) => target !== '' && !/^[a-z]+:/.test(target))
    .map((target) => relative(root, resolve(root, dirname(page), target)))
    .filter((file) => !exists(join(root, file)))
  expect(missing).toEqual([])
})

test.each(pages)('%s names only tests that exist', (page) => {
  const unknown = linksOf(page)
    .filter(({ target, title }) => title !== undefined && target.endsWith('.test.ts'))
    .filter(({ target, title }) => {
      const source = readFileSync(resolve(root, dirname(page), target), 'utf8')
      return !source.includes(title!)
    })
    .map(({ target, title }) => `${target}: ${title}`)
  expect(unknown).toEqual([])
})

test('every claim of the threat model names its test', () => {
  const text = readFileSync(join(root, 'docs', 'threat-model.md'), 'utf8')
  const [claimed] = text.split('## What is not protected') as [string]
  const claims = claimed.split('\n').filter((line) => line.startsWith('- '))
  expect(claims.length).toBeGreaterThan(20)
  expect(claims.filter((line) => !/\.test\.ts(?: |\))/.test(line))).toEqual([])
})

test('every row of docs/reliability.md names its test', () => {
  const text = readFileSync(join(root, 'docs', 'reliability.md'), 'utf8')
  const rows = text.split('\n').filter((line) => line.startsWith('| ') && !line.endsWith('| test |'))
  expect(rows.length).toBeGreaterThan(15)
  expect(rows.filter((line) => !/\.test\.ts '|\| the same \|$/.test(line))).toEqual([])
})

/** Rooms of the program: the folders in src. */
const rooms = readdirSync(join(root, 'src'), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map(({ name }) => name)

/**
 * Lists the modules that a page names in backticks: `room/file.ts`, `room/file`, `src/room/file.ts`, `test/file.test.ts`. Paths of a
 * room are below src. Leaves out built files, whose names the build chooses.
 */
function modulesOf(page: string): string[] {
  const text = readFileSync(join(root, page), 'utf8').replaceAll(/^```[\s\S]*?^```/gm, '')
  const names = [...text.matchAll(/`((?:[a-z0-9-]+\/)+[a-z0-9.-]+)`/g)].map(([, name]) => name!)
  return names.flatMap((name) => {
    const [first] = name.split('/') as [string]
    const path = rooms.includes(first) ? `src/${name}` : name
    const isInRoom = rooms.some((room) => path.startsWith(`src/${room}/`))
    const isModule = /\.[jt]s$/.test(name) ? first !== 'dist' : isInRoom && !name.includes('.')
    return isModule ? [path] : []
  })
}

test.each(pages.filter((page) => page !== 'CHANGELOG.md'))('%s names only modules that exist', (page) => {
  const missing = modulesOf(page).filter((path) => ![path, `${path}.ts`].some((file) => exists(join(root, file))))
  expect(missing).toEqual([])
})

test('docs/architecture.md names modules of every room', () => {
  const modules = modulesOf(join('docs', 'architecture.md'))
  expect(modules.length).toBeGreaterThan(80)
  expect(rooms.filter((room) => !modules.some((path) => path.startsWith(`src/${room}/`)))).toEqual([])
})

// Run on Linux only, because other systems send blobs in another way.
test.runIf(process.platform === 'linux')('the walks of docs/architecture.md name the files that run', () => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/walk.js', '--check'], {
    cwd: root,
    encoding: 'utf8',
  })
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
})

test('the glossary of docs/architecture.md has at most ten terms', () => {
  const [, glossary] = readFileSync(join(root, 'docs', 'architecture.md'), 'utf8').split('## Glossary') as [
    string,
    string,
  ]
  expect(glossary.split('\n').filter((line) => line.startsWith('| ')).length - 1).toBeLessThanOrEqual(10)
})

test('the README has at most 180 lines', () => {
  expect(readFileSync(join(root, 'README.md'), 'utf8').split('\n').length - 1).toBeLessThanOrEqual(180)
})

function exists(path: string): boolean {
  try {
    readFileSync(path)
    return true
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EISDIR'
  }
}
