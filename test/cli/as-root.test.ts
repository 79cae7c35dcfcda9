import { spawn, spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, chown, cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { mirrorPaths } from '../../src/config/paths.ts'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { getProcessIdentity } from '../../src/lib/process.ts'
import { writeState } from '../../src/admin/state.ts'

const program = join(findPackageRoot(), 'bin', 'run.js')
const nobody = 65_534

let folder: string
/** The home folder of another user. */
let foreignFolder: string
/** A folder of root; it replaces the home folder from the user database. */
let own: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-as-root-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  await chmod(folder, 0o755)
  foreignFolder = join(folder, 'theirs')
  own = join(folder, 'own')
  await mkdir(foreignFolder)
  await mkdir(own)
})

/** Runs mirror as root with the environment of another user, as sudo may keep it. */
function mirror(args: string[], env: Record<string, string> = {}) {
  const { stdout, stderr, status } = spawnSync(process.execPath, [program, ...args], {
    env: { PATH: process.env['PATH'], HOME: foreignFolder, MIRROR_HOME: own, ...env },
    encoding: 'utf8',
    cwd: '/',
  })
  return { stdout, stderr, status }
}

async function giveFilesToOtherUser(): Promise<void> {
  spawnSync('chown', ['-hR', `${nobody}:${nobody}`, foreignFolder])
  await chown(foreignFolder, nobody, nobody)
}

/** Lists the files of root in the folder of the other user. */
function snapshotRootFiles(): string {
  return spawnSync('find', [foreignFolder, '-user', 'root'], { encoding: 'utf8' }).stdout
}

describe.runIf(process.getuid?.() === 0)('mirror as root with the environment of another user', () => {
  test('reports once on stderr which variables it does not use, why, and how to use them', async () => {
    await giveFilesToOtherUser()
    const { stdout, stderr, status } = mirror(['status', '--json'], { XDG_STATE_HOME: foreignFolder })
    expect(JSON.parse(stdout)).toEqual({ running: false })
    expect(status).toBe(3)
    expect(stderr).toContain('As root, mirror uses nothing that other users can change. Not used:')
    expect(stderr).toContain(`HOME=${foreignFolder}   (${foreignFolder} belongs to nobody; /root takes its place)`)
    expect(stderr).toContain(`XDG_STATE_HOME=${foreignFolder}`)
    expect(stderr).toContain('without sudo, as nobody')
    expect(stderr.match(/Not used:/g)).toHaveLength(1)
    expect(snapshotRootFiles()).toBe('')
  })

  test('prints no warning about a PATH that its own command line passes, and one about a PATH that sudo kept', async () => {
    await giveFilesToOtherUser()
    const env = { HOME: own, PATH: `${foreignFolder}:${process.env['PATH']}`, SUDO_UID: String(nobody) }
    const line = `/usr/bin/env PATH=${env.PATH} mirror configure --list`
    expect(mirror(['configure', '--list'], { ...env, SUDO_COMMAND: line }).stderr).toBe('')
    const kept = mirror(['configure', '--list'], { ...env, SUDO_COMMAND: '/usr/local/bin/mirror configure --list' })
    expect(kept.stderr).toContain(`PATH=${foreignFolder}`)
    const passedAndKept = { ...env, HOME: foreignFolder, SUDO_COMMAND: line }
    const { stderr } = mirror(['configure', '--list'], passedAndKept)
    expect(stderr).toContain(`HOME=${foreignFolder}`)
    expect(stderr).not.toContain(`PATH=${foreignFolder}`)
  })

  test('prints no warning when every folder belongs to root', () => {
    expect(mirror(['configure', '--list'], { HOME: own }).stderr).toBe('')
  })

  test.each([
    [['up', '--dry-run'], 'MIRROR_HOME'],
    [['up', '--dry-run'], 'MIRROR_CONFIG'],
    [['up', '--dry-run'], 'MIRROR_DATA'],
    [['serve'], 'MIRROR_HOME'],
    [['init', '--yes'], 'MIRROR_HOME'],
    [['cache', 'ls'], 'MIRROR_HOME'],
    [['cache', 'prune'], 'MIRROR_DATA'],
    [['registry', 'gc'], 'MIRROR_HOME'],
    [['credentials', 'refresh'], 'MIRROR_HOME'],
  ])('refuses %j with %s of another user, and touches nothing there', async (args, name) => {
    await writeFile(join(foreignFolder, 'mirror.yaml'), 'tls: {cert: /etc/shadow, key: /etc/shadow}\n')
    await giveFilesToOtherUser()
    const { stderr, status } = mirror(args, {
      [name]: join(foreignFolder, name === 'MIRROR_CONFIG' ? 'mirror.yaml' : ''),
    })
    expect(stderr).toContain(`they can change ${name}=${foreignFolder}`)
    expect(stderr).toContain('MIRROR_HOME=/root/mirror')
    expect(status).toBe(2)
    expect(snapshotRootFiles()).toBe('')
  })

  test.each([
    ['up', '--dry-run', '--config'],
    ['up', '--dry-run', '--data'],
    ['serve', '--config'],
    ['init', '--template', 'compose', '--output'],
    ['configure', 'docker', '--mirror', 'http://127.0.0.1:5055', '--yes', '--root'],
    ['configure', 'kind', '--mirror', 'http://127.0.0.1:5055', '--yes', '--file'],
    ['configure', 'docker', '--mirror', 'http://127.0.0.1:5055', '--dry-run', '--ca'],
  ])('refuses `%s %s %s …` when the last flag names a path of another user', async (...args) => {
    await giveFilesToOtherUser()
    const { stderr, status } = mirror([...args, join(foreignFolder, 'x')])
    expect(stderr).toContain('they can change')
    expect(stderr).toContain(`${foreignFolder} belongs to nobody`)
    expect(status).toBe(2)
    expect(snapshotRootFiles()).toBe('')
  })

  test('reads no configuration, starts no program and ends no process that files of another user name', async () => {
    const marker = join(folder, 'has-run')
    for (const name of ['docker', 'kind', 'podman', 'docker-credential-evil', 'getent']) {
      await writeFile(join(foreignFolder, name), `#!/bin/sh\ntouch ${marker}\n`, { mode: 0o755 })
    }
    const state = join(foreignFolder, 'state')
    await mkdir(state)
    const victim = process.pid
    const endpoints = { cache: [], registry: [], admin: [], networks: {} }
    const mirrorState = { pid: victim, version: '1', runtime: 'process', startedAt: '', configHashes: {}, endpoints }
    await writeFile(join(state, 'mirror.json'), JSON.stringify(mirrorState))
    await writeFile(join(foreignFolder, 'mirror.yaml'), 'no: [valid, configuration\n')
    await giveFilesToOtherUser()
    // Use an empty home folder, so that a mirror that root runs on this machine is not found.
    const env = { PATH: `${foreignFolder}:${process.env['PATH']}`, HOME: own, MIRROR_HOME: foreignFolder }
    for (const args of [['status'], ['down'], ['configure', '--list'], ['up', '--dry-run'], ['cache', 'ls']]) {
      const { stderr } = mirror(args, env)
      expect(stderr, args.join(' ')).toContain(`MIRROR_HOME=${foreignFolder}`)
      expect(stderr, args.join(' ')).not.toContain('mirror.yaml')
    }
    expect(existsSync(marker)).toBe(false)
    process.kill(victim, 0)
    expect(snapshotRootFiles()).toBe('')
  })

  test.each([
    ['down', '--json'],
    ['down', '--volumes', '--yes'],
    ['down', '--dry-run'],
    ['logs', '--json'],
    ['cache', 'ls'],
  ])(
    'refuses `%s %s %s` for a mirror of another user, and does not act on its own running mirror instead',
    async (...args) => {
      await giveFilesToOtherUser()
      const victim = spawn('sleep', ['60'], { stdio: 'ignore' })
      onTestFinished(() => void victim.kill())
      const { stateFile } = mirrorPaths({ platform: process.platform, env: {}, homedir: own, cwd: '/' })
      await writeState(stateFile, {
        pid: victim.pid!,
        processIdentity: await getProcessIdentity(victim.pid!),
        version: '1',
        runtime: 'process',
        startedAt: '',
        configHashes: {},
        endpoints: { cache: [], registry: [], admin: ['http://127.0.0.1:1'], networks: {} },
        logFile: undefined,
      })
      const { stderr, status } = mirror(args, { HOME: own, MIRROR_HOME: foreignFolder })
      expect(stderr).toContain(`they can change MIRROR_HOME=${foreignFolder}`)
      expect(status).toBe(2)
      // Check that the process still runs: after its end it has no identity.
      expect(await getProcessIdentity(victim.pid!)).toBeDefined()
    },
  )

  test('follows no link of another user out of a folder that it edits, and writes no file into a folder of another user', async () => {
    const [root, target] = [join(folder, 'machine'), join(folder, 'target.json')]
    await mkdir(join(root, 'etc', 'docker'), { recursive: true })
    await writeFile(target, '{}')
    await symlink(target, join(foreignFolder, 'daemon.json'))
    await giveFilesToOtherUser()
    const args = [
      'configure',
      'docker',
      '--mirror',
      'http://127.0.0.1:5055',
      '--yes',
      '--image-store',
      'classic',
      '--root',
      root,
    ]
    await chown(join(root, 'etc', 'docker'), nobody, nobody)
    const { stderr, status } = mirror(args)
    expect(status, stderr).toBe(2)
    expect(stderr).toContain(`${join(root, 'etc', 'docker')} belongs to nobody`)
    await chown(join(root, 'etc', 'docker'), 0, 0)
    expect(mirror(args).status).toBe(0)
    expect(await readFile(target, 'utf8')).toBe('{}')
  })

  test('undoes nothing from a record that another user can change', async () => {
    const root = join(folder, 'machine')
    const daemonJson = join(root, 'etc', 'docker', 'daemon.json')
    await mkdir(join(root, 'etc', 'docker'), { recursive: true })
    await writeFile(daemonJson, '{"debug": true}\n')
    const configure = ['configure', 'docker', '--mirror', 'http://127.0.0.1:5055', '--yes', '--image-store', 'classic']
    expect(mirror([...configure, '--root', root])).toMatchObject({ status: 0 })
    const configured = await readFile(daemonJson, 'utf8')
    // Copy a valid record: it names the file and the content that replaces it.
    await cp(join(own, 'state'), join(foreignFolder, 'state'), { recursive: true })
    await giveFilesToOtherUser()
    const undo = ['configure', 'docker', '--undo', '--yes', '--root', root]
    const { stdout, stderr } = mirror(undo, { MIRROR_HOME: foreignFolder })
    expect(stdout).toContain('Nothing to undo')
    expect(stderr).toContain(`MIRROR_HOME=${foreignFolder}`)
    expect(await readFile(daemonJson, 'utf8')).toBe(configured)
    expect(mirror(undo)).toMatchObject({ status: 0 })
    expect(await readFile(daemonJson, 'utf8')).toBe('{"debug": true}\n')
  })

  test('reports records of root that another user can change, and how to undo them by hand', async () => {
    const configured = join(foreignFolder, '.local', 'state', 'mirror', 'configured')
    await mkdir(configured, { recursive: true })
    await giveFilesToOtherUser()
    await writeFile(join(configured, 'docker-0123456789abcdef.json'), '{"client": "docker"', { mode: 0o600 })
    const { stdout, stderr, status } = mirror(['configure', '--undo', '--yes'])
    expect(status, stderr).toBe(0)
    expect(stdout).toContain('Nothing to undo')
    expect(stderr).toContain(`${configured} has records of root that other users can change`)
    expect(stderr).toContain(`sudo rm -r ${configured}`)
  })
})
