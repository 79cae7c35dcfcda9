import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, test } from 'vitest'
import { type Entry, type Tree, formatArchive, parseArchive, readTree, unpackTree } from './archive.ts'

const here = dirname(fileURLToPath(import.meta.url))
const program = join(here, '..', '..', 'bin', 'run.js')

/**
 * A case is a text archive `<client>/<case>.txt` (its format: archive.ts) with these sections:
 *
 * - `before/…`: the tree that the command finds.
 * - `command`: the arguments after `mirror configure`.
 * - `after/…`: the files and links that the command leaves.
 * - `stdout` and `stderr`: texts that the output contains, one a line.
 * - `exit`: the exit code, when it is not 0. The command then changes nothing, and there is no `after/`.
 *
 * `CASE` stands for the folder of the tree, in the command and in files.
 * `vitest -u` writes what the command leaves into the section `after`; read the difference before you commit it.
 */
const sections = /^(?:(?:before|after)\/.+|command|stdout|stderr|exit)$/

const cases = readdirSync(here, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .flatMap(({ name: client }) => readdirSync(join(here, client)).map((file) => `${client}/${file}`))
  .filter((file) => file.endsWith('.txt'))
  .map((file) => file.slice(0, -'.txt'.length))

/** Returns the text of a section that is one file. */
function textOf(archive: Tree, section: string): string | undefined {
  const entry = archive.get(section)
  return entry?.kind === 'file' ? entry.content.toString('utf8') : undefined
}

function linesOf(archive: Tree, section: string): string[] {
  return textOf(archive, section)?.replace(/\n$/, '').split('\n') ?? []
}

/** Returns the entries below `before/` or `after/`, by their paths in the tree. */
function treeOf(archive: Tree, section: string): Tree {
  const prefix = `${section}/`
  const entries = [...archive].filter(([path]) => path.startsWith(prefix))
  return new Map(entries.map(([path, entry]) => [path.slice(prefix.length), entry]))
}

/** Replaces the section `after`; its entries follow the command. */
function replaceAfter(archive: Tree, after: Tree): Tree {
  const others = [...archive].filter(([path]) => !path.startsWith('after/'))
  const position = others.findIndex(([path]) => path === 'command') + 1
  const entries = [...after].map(([path, entry]): [string, Entry] => [`after/${path}`, entry])
  return new Map(others.toSpliced(position, 0, ...entries))
}

/** Returns files and links without modes, because a case does not record the modes and the folders that the command leaves. */
function contentOf(tree: Tree): Tree {
  const entries = [...tree].filter(([, { kind }]) => kind !== 'folder')
  return new Map(entries.map(([path, entry]) => [path, entry.kind === 'file' ? { ...entry, mode: undefined } : entry]))
}

function shapeOf(entry: Entry | undefined) {
  return entry?.kind === 'link' ? { kind: 'link' } : { kind: entry?.kind, mode: entry?.mode }
}

/** Replaces text in each file, whatever its other bytes are. */
function replaceInFiles(tree: Tree, text: string, replacement: string): Tree {
  const [from, to] = [text, replacement].map((each) => Buffer.from(each).toString('latin1')) as [string, string]
  const replaceIn = (entry: Entry): Entry =>
    entry.kind === 'file'
      ? { ...entry, content: Buffer.from(entry.content.toString('latin1').replaceAll(from, to), 'latin1') }
      : entry
  return new Map([...tree].map(([path, entry]) => [path, replaceIn(entry)]))
}

async function run(args: readonly string[], cwd: string, home: string) {
  const env = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: home }
  const child = spawn(process.execPath, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number]
  return { exit, stdout, stderr }
}

describe('before, the command, after, and back', () => {
  // Run the cases concurrently, because starting the program takes most of the time.
  test.concurrent.for(cases)('%s', async (name, { expect, onTestFinished }) => {
    const file = join(here, `${name}.txt`)
    const archive = parseArchive(await readFile(file, 'utf8'))
    expect([...archive.keys()].filter((path) => !sections.test(path))).toEqual([])
    const work = await mkdtemp(join(tmpdir(), 'mirror-golden-'))
    onTestFinished(() => rm(work, { recursive: true, force: true }))
    const [root, home] = [join(work, 'tree'), join(work, 'home')]
    await mkdir(root)
    await mkdir(home)
    await unpackTree(replaceInFiles(treeOf(archive, 'before'), 'CASE', root), root)
    const readCase = async () => replaceInFiles(await readTree(root), root, 'CASE')
    const before = await readCase()

    const words = textOf(archive, 'command')!.trim().replaceAll('CASE', root).split(/\s+/)
    const configure = (...more: string[]) =>
      run([program, 'configure', ...words, '--root', root, ...more, '--yes'], work, home)
    const address = words.includes('--mirror') ? [] : ['--mirror', 'http://127.0.0.1:5055']
    const first = await configure(...address)
    const exit = Number(textOf(archive, 'exit') ?? 0)
    expect(first, first.stderr).toMatchObject({ exit })
    for (const line of linesOf(archive, 'stdout')) expect(first.stdout).toContain(line)
    for (const line of linesOf(archive, 'stderr')) expect(first.stderr).toContain(line)
    const after = await readCase()
    if (exit !== 0) {
      expect(formatArchive(after)).toBe(formatArchive(before))
      await expect(formatArchive(replaceAfter(archive, new Map()))).toMatchFileSnapshot(file)
      return
    }

    await expect(formatArchive(replaceAfter(archive, contentOf(after)))).toMatchFileSnapshot(file)
    for (const [path, entry] of before) {
      // Files, folders and links that existed before keep their kind and their mode.
      expect(shapeOf(after.get(path)), path).toEqual(shapeOf(entry))
    }

    expect(await configure(...address)).toMatchObject({ exit: 0 })
    expect(formatArchive(await readCase()), 'a second time').toBe(formatArchive(after))

    const undone = await configure('--undo')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(formatArchive(await readCase()), 'undone').toBe(formatArchive(before))
  })
})
