import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, lstat, mkdir, mkdtemp, readFile, readdir, readlink, rm } from 'node:fs/promises'
import { existsSync, readdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, test } from 'vitest'

const here = dirname(fileURLToPath(import.meta.url))
const program = join(here, '..', '..', 'bin', 'run.js')

/**
 * A case is a folder `<client>/<case>` with `before/` and `after/` (a missing one is an empty tree), `command` (the arguments
 * after `mirror configure`; `CASE` stands for the tree, there and in the files of `after/`; `%3A` in a name there stands for a colon), and, where needed, `setup` (shell, run in the tree: modes, links),
 * `exit` (the code, then nothing may have changed), `stdout` and `stderr` (texts that must be in it, a line each).
 */
const cases = readdirSync(here, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .flatMap(({ name: client }) => readdirSync(join(here, client)).map((name) => join(client, name)))

/** Each file of a tree: its kind, mode and content. */
async function treeOf(root: string): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    const name = relative(root, path).replaceAll('%3A', ':')
    if (entry.isSymbolicLink()) found[name] = `link to ${await readlink(path)}`
    else if (entry.isDirectory()) found[name] = 'folder'
    else found[name] = `${((await lstat(path)).mode & 0o777).toString(8)} ${await contentAt(path, root)}`
  }
  return found
}

/** The text of a file; the folder of the tree stands in it as `CASE`. */
async function contentAt(path: string, root: string): Promise<string> {
  return JSON.stringify((await readFile(path, 'utf8')).replaceAll(root, 'CASE'))
}

/** What a tree holds, whatever the modes that git does not keep. */
function contentOf(tree: Record<string, string>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(tree)
      .filter(([, what]) => what !== 'folder')
      .map(([name, what]) => [name, what.replace(/^\d+ /, '')]),
  )
}

async function run(file: string, args: readonly string[], cwd: string, home: string) {
  const env = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: home }
  const child = spawn(file, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number]
  return { exit, stdout, stderr }
}

async function textOf(file: string): Promise<string | undefined> {
  return existsSync(file) ? readFile(file, 'utf8') : undefined
}

describe('before, the command, after, and back', () => {
  // Most of the time goes into starting the program.
  test.concurrent.for(cases)('%s', async (name, { expect, onTestFinished }) => {
    const golden = join(here, name)
    const work = await mkdtemp(join(tmpdir(), 'mirror-golden-'))
    onTestFinished(() => rm(work, { recursive: true, force: true }))
    const [tree, home] = [join(work, 'tree'), join(work, 'home')]
    await mkdir(tree)
    await mkdir(home)
    if (existsSync(join(golden, 'before')))
      await cp(join(golden, 'before'), tree, { recursive: true, verbatimSymlinks: true })
    const setup = await textOf(join(golden, 'setup'))
    if (setup !== undefined) expect(await run('sh', ['-ec', setup], tree, home)).toMatchObject({ exit: 0, stderr: '' })
    const before = await treeOf(tree)

    const words = (await readFile(join(golden, 'command'), 'utf8')).trim().replaceAll('CASE', tree).split(/\s+/)
    const configure = (...more: string[]) =>
      run(process.execPath, [program, 'configure', ...words, '--root', tree, ...more, '--yes'], work, home)
    const address = words.includes('--mirror') ? [] : ['--mirror', 'http://127.0.0.1:5055']
    const first = await configure(...address)
    const exit = Number((await textOf(join(golden, 'exit'))) ?? 0)
    expect(first, first.stderr).toMatchObject({ exit })
    for (const line of ((await textOf(join(golden, 'stdout'))) ?? '').split('\n')) expect(first.stdout).toContain(line)
    for (const line of ((await textOf(join(golden, 'stderr'))) ?? '').split('\n')) expect(first.stderr).toContain(line)
    if (exit !== 0) {
      expect(await treeOf(tree)).toEqual(before)
      return
    }

    const after = await treeOf(tree)
    const wanted = existsSync(join(golden, 'after')) ? await treeOf(join(golden, 'after')) : {}
    expect(contentOf(after)).toEqual(contentOf(wanted))
    for (const [path, what] of Object.entries(before)) {
      // What was there keeps its kind and its mode.
      expect(after[path]?.split(' ', 1)[0], path).toBe(what.split(' ', 1)[0])
    }

    expect(await configure(...address)).toMatchObject({ exit: 0 })
    expect(await treeOf(tree), 'a second time').toEqual(after)

    const undone = await configure('--undo')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await treeOf(tree), 'undone').toEqual(before)
  })
})
