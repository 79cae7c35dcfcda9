import { spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { findMemoryGroups, MemoryGroup } from '../../soak/memory-group.js'

/** Creates a folder with these files, as the kernel shows control groups. */
async function controlGroups(files: Record<string, string>): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'mirror-groups-'))
  onTestFinished(() => rm(root, { recursive: true, force: true }))
  for (const [name, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, name)), { recursive: true })
    await writeFile(join(root, name), text)
  }
  return root
}

const first = { 'memory/memory.limit_in_bytes': '9223372036854771712\n', 'cpu/cgroup.procs': '' }
const second = { 'cgroup.controllers': 'cpuset cpu io memory pids\n', 'cgroup.subtree_control': 'cpu memory\n' }
const within = (folder: string, files: Record<string, string>) =>
  Object.fromEntries(Object.entries(files).map(([name, text]) => [`${folder}/${name}`, text]))

describe('the search for groups with a memory limit', () => {
  test.each([
    ['of version 1', first, 'memory', 1],
    [
      'of version 1, where the second version has no memory',
      { ...first, 'unified/cgroup.controllers': '' },
      'memory',
      1,
    ],
    ['of version 2', second, '.', 2],
    [
      'of version 2, beside others of version 1',
      { 'cpu/cgroup.procs': '', ...within('unified', second) },
      'unified',
      2,
    ],
  ])('finds groups %s', async (_, files, folder, version) => {
    const root = await controlGroups(files)
    expect(findMemoryGroups(root)).toEqual({ folder: join(root, folder), version })
    expect((await readdir(join(root, folder))).filter((name) => name.startsWith('mirror'))).toEqual([])
  })

  test('enables the memory controller for the groups of version 2', async () => {
    const root = await controlGroups({ ...second, 'cgroup.subtree_control': 'cpu pids\n' })
    findMemoryGroups(root)
    expect(await readFile(join(root, 'cgroup.subtree_control'), 'utf8')).toBe('+memory')
  })

  test.each([
    ['nothing is mounted', {}, /no memory controller .* neither of version 1 nor of version 2/],
    ['the second version has no memory', { 'cgroup.controllers': 'cpu pids\n' }, /no memory controller/],
  ])('throws an error that says that %s', async (_, files, message) => {
    const root = await controlGroups(files)
    expect(() => findMemoryGroups(root)).toThrow(message)
  })

  test('throws an error with the reason of the system if no group can be created', async () => {
    const root = await controlGroups(second)
    await writeFile(join(root, `mirror-probe-${process.pid}`), 'in the way')
    expect(() => findMemoryGroups(root)).toThrow(/No group can be made in .* \(EEXIST\)/)
  })
})

describe('a group with a memory limit', () => {
  test.each([
    ['1', first, 'memory/group', 'memory.limit_in_bytes', 'memory.oom_control'],
    ['2', second, 'group', 'memory.max', 'memory.events'],
  ])('of version %s has the limit, runs programs, and counts what the kernel ends', async (...row) => {
    const [, files, folder, limit, events] = row
    const root = await controlGroups(files)
    const group = new MemoryGroup(findMemoryGroups(root), 'group', 256 * 2 ** 20)
    const path = join(root, folder)
    expect(await readFile(join(path, limit), 'utf8')).toBe('268435456')
    await writeFile(join(path, events), 'low 0\noom 7\noom_kill 3\noom_group_kill 0\n')
    expect(group.kills).toBe(3)
    const [program, ...args] = [...group.wrapper, 'sh', '-c', 'echo "$$ $1"', 'sh', 'an argument']
    const { pid, stdout } = spawnSync(program, args, { encoding: 'utf8' })
    expect(stdout).toBe(`${pid} an argument\n`)
    expect(await readFile(join(path, 'cgroup.procs'), 'utf8')).toBe(`${pid}\n`)
    for (const name of await readdir(path)) await rm(join(path, name))
    await group.remove()
    expect(await readdir(dirname(path))).not.toContain('group')
  })
})
