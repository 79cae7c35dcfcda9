import { spawnSync } from 'node:child_process'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { hasStrace } from '../support/failing-disk.ts'
import { temporaryHome } from '../support/mirror.ts'

const program = join(findPackageRoot(), 'bin', 'run.js')

/** Call that succeeded, with its name and the paths in it. */
interface Call {
  readonly name: string
  readonly paths: readonly string[]
}

/** Returns the system calls in the order in which they ended. */
function callsOf(trace: string): Call[] {
  const begun = new Map<string, string>()
  return trace.split('\n').flatMap((line) => {
    const [, pid = '', text = ''] = /^(\d+) +(.*)$/.exec(line) ?? []
    if (text.endsWith('<unfinished ...>')) begun.set(pid, text)
    if (!/ = \d+$/.test(text)) return []
    const whole = text.startsWith('<...') ? `${begun.get(pid) ?? ''}${text}` : text
    const paths = [...whole.matchAll(/"([^"]+)"|\d+<([^>]+)>/g)].map(([, quoted, open]) => (quoted ?? open)!)
    return [{ name: /^\w+/.exec(whole)?.[0] ?? '', paths }]
  })
}

describe.skipIf(!hasStrace)('the files that `mirror configure` writes, in a trace of system calls', () => {
  test('every file is on disk with the folders above it, and the undo record is on disk before the file of the client changes', async () => {
    const home = await temporaryHome()
    const root = join(home, 'root')
    const daemonJson = join(root, 'etc', 'docker', 'daemon.json')
    await mkdir(dirname(daemonJson), { recursive: true })
    await writeFile(daemonJson, '{"debug": true}\n')
    const trace = join(home, 'trace')
    const traced = ['-f', '-qq', '-y', '-s', '512', '-o', trace, '-e', 'trace=fsync,fdatasync,rename,mkdir']
    const configure = [program, 'configure', 'docker', '--mirror', 'http://127.0.0.1:5055', '--root', root, '--yes']
    const env = { ...process.env, MIRROR_HOME: join(home, 'mirror') }
    const { status, stderr } = spawnSync('strace', [...traced, process.execPath, ...configure], {
      env,
      encoding: 'utf8',
    })
    expect(status, stderr).toBe(0)

    const calls = callsOf(await readFile(trace, 'utf8'))
    const made = calls.flatMap(({ name, paths }, at) => {
      const path = paths.at(-1)!
      return (name === 'mkdir' || name === 'rename') && path.startsWith(home) ? [{ at, name, path }] : []
    })
    expect(made.length).toBeGreaterThan(5)
    const isSynced = (path: string, from: number, to?: number) =>
      calls.slice(from, to).some(({ name, paths }) => name.endsWith('sync') && paths[0] === path)
    expect(made.filter(({ at, path }) => !isSynced(dirname(path), at + 1)).map(({ path }) => path)).toEqual([])
    // Checks that the bytes of a file are on disk before it gets its name.
    const renamed = made.filter(({ name }) => name === 'rename')
    expect(renamed.filter(({ at }) => !isSynced(calls[at]!.paths[0]!, 0, at)).map(({ path }) => path)).toEqual([])

    const changed = renamed.find(({ path }) => path === daemonJson)!
    const before = renamed.filter(({ at, path }) => at < changed.at && path.startsWith(join(home, 'mirror', 'state')))
    expect(before.length).toBeGreaterThan(0)
    for (const { at, path } of before) expect(isSynced(dirname(path), at + 1, changed.at), path).toBe(true)
  })
})
