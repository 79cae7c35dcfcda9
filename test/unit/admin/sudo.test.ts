import { chown, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { renderRootCommand } from '../../../src/admin/sudo.ts'

let folder: string
let programs: { execPath: string; program: string; folders: string[] }
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-sudo-'))
  programs = { execPath: join(folder, 'nvm/node'), program: join(folder, 'lib/run.js'), folders: [join(folder, 'bin')] }
  for (const name of ['nvm', 'lib', 'bin', 'other']) await mkdir(join(folder, name))
  for (const file of [programs.execPath, programs.program]) await writeFile(file, '', { mode: 0o755 })
})
afterEach(() => rm(folder, { recursive: true }))

// user is an ordinary user, who may have called sudo.
const user = { platform: 'linux' as const, env: { SUDO_UID: '1000' }, cwd: '/' }
const command = (env: Record<string, string> = {}) =>
  renderRootCommand({ ...user, env: { ...user.env, ...env } }, ['configure', 'docker', '--file', 'a b'], programs)

describe('the command line for root', () => {
  test('names mirror and Node by their paths where sudo finds none or others', async () => {
    const named = `sudo ${programs.execPath} ${programs.program} configure docker --file 'a b'`
    expect(await command()).toBe(named)
    await symlink(programs.program, join(folder, 'bin', 'mirror'))
    expect(await command()).toBe(named)
    await writeFile(join(folder, 'bin', 'node'), 'another Node', { mode: 0o755 })
    expect(await command()).toBe(named)
  })

  test('is short where sudo finds mirror and Node', async () => {
    await symlink(programs.program, join(folder, 'bin', 'mirror'))
    await symlink(programs.execPath, join(folder, 'bin', 'node'))
    expect(await command()).toBe("sudo mirror configure docker --file 'a b'")
  })

  test("keeps the user's PATH where only that leads to mirror and Node", async () => {
    await symlink(programs.program, join(folder, 'other', 'mirror'))
    await symlink(programs.execPath, join(folder, 'other', 'node'))
    const path = { PATH: `relative:${join(folder, 'other')}` }
    expect(await command(path)).toBe(`sudo env "PATH=$PATH" mirror configure docker --file 'a b'`)
    expect(await command({ ...path, DOCKER_HOST: 'tcp://127.0.0.1:1' })).toContain(
      'sudo env "PATH=$PATH" DOCKER_HOST=tcp://127.0.0.1:1 mirror',
    )
    await writeFile(join(folder, 'bin', 'mirror'), 'another mirror', { mode: 0o755 })
    expect(await command(path)).toContain('sudo env "PATH=$PATH" mirror')
  })

  test("is the same for root that runs it, although root's own PATH has no folders of the user", async () => {
    await symlink(programs.program, join(folder, 'other', 'mirror'))
    await symlink(programs.execPath, join(folder, 'other', 'node'))
    const own = { ...user, env: { ...user.env, PATH: join(folder, 'bin') } }
    const callers = { ...own, homedir: '/', env: { ...user.env, PATH: join(folder, 'other') } }
    expect(await renderRootCommand({ ...own, callers }, ['configure', 'docker'], programs)).toBe(
      'sudo env "PATH=$PATH" mirror configure docker',
    )
  })

  test('sets the variables that sudo removes', async () => {
    expect(await command({ DOCKER_HOST: 'unix:///run/a b.sock', HOME: '/home/me' })).toContain(
      "sudo env DOCKER_HOST='unix:///run/a b.sock' /",
    )
  })

  test.runIf(process.getuid?.() === 0)('sets no variable whose path root does not trust', async () => {
    const foreignFolder = join(folder, 'theirs')
    await mkdir(foreignFolder)
    await chown(foreignFolder, 65_534, 65_534)
    const variables = { MIRROR_HOME: foreignFolder, XDG_STATE_HOME: foreignFolder }
    const named = {
      DOCKER_HOST: `unix://${foreignFolder}/docker.sock`,
      CONTAINERS_REGISTRIES_CONF: join(foreignFolder, 'registries.conf'),
    }
    // Checks that root searches the folders of the user's mirror.
    expect(await command({ ...named, ...variables })).toContain(
      `sudo env MIRROR_HOME=${foreignFolder} XDG_STATE_HOME=${foreignFolder} /`,
    )
    expect(await command({ DOCKER_HOST: 'tcp://127.0.0.1:2375' })).toContain('DOCKER_HOST=tcp://127.0.0.1:2375')
  })

  test('has no sudo for an administrator of Windows', async () => {
    expect(await renderRootCommand({ ...user, platform: 'win32' }, ['configure', 'docker'], programs)).toBe(
      'mirror configure docker',
    )
  })

  test.runIf(process.getuid?.() === 0)('has no sudo for root', async () => {
    expect(await renderRootCommand({ platform: 'linux', env: {}, cwd: '/' }, ['configure', 'docker'], programs)).toBe(
      'mirror configure docker',
    )
  })
})
