import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { type Apart, startApart } from './support/apart.ts'
import { type Cri, criClient } from './support/cri.ts'
import { type Daemon, startDaemon } from './support/daemon.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Scene, startScene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

const registries = ['docker.io', 'quay.io', 'registry.corp.example:8443']
const references = ['docker.io/library/app:one', 'quay.io/org/app:one', 'registry.corp.example:8443/org/app:one']
const socket = '/run/containerd/containerd.sock'
const configFile = '/etc/containerd/config.toml'

/** Sets up a machine for the containerd installed below `root`, with its own configuration. */
async function machineWith(root: string, config: string): Promise<{ scene: Scene; apart: Apart; cri: Cri }> {
  const image = await runnableImage(1, 'oci')
  const scene = await startScene({ content: { 'library/app': { one: image }, 'org/app': { one: image } }, registries })
  const apart = await startApart(scene, searchPath(root))
  const folders = `root = "${join(scene.folder, 'root')}"\nstate = "${join(scene.folder, 'state')}"\n`
  await write(apart, configFile, folders + config)
  return { scene, apart, cri: criClient(apart.outside(socket)) }
}

async function startContainerd({ apart, scene }: { apart: Apart; scene: Scene }, root: string): Promise<Daemon> {
  const daemon = await startDaemon({
    command: apart.enter([join(root, '/usr/bin/containerd')]),
    env: { PATH: searchPath(root) },
    logFile: join(scene.folder, 'containerd.log'),
    ready: () => apart.run(join(root, '/usr/bin/ctr'), 'version'),
  })
  onTestFinished(daemon.stop)
  return daemon
}

async function write(apart: Apart, path: string, text: string): Promise<void> {
  await apart.run('sh', '-c', `mkdir -p "$(dirname ${path})"; printf %s "$1" > ${path}`, 'sh', text)
}

async function configured(apart: Apart): Promise<{ todo: string[]; inUse?: boolean; saw?: string[] }> {
  const { exit, stdout, stderr } = await apart.mirror('configure', 'containerd', '--yes', '--json')
  expect(exit, stderr).toBe(0)
  return JSON.parse(stdout) as { todo: string[]; inUse?: boolean; saw?: string[] }
}

async function expectCheck(apart: Apart, exit: 0 | 5): Promise<void> {
  const check = await apart.mirror('configure', 'containerd', '--check')
  expect(check, check.stderr).toMatchObject({
    exit,
    stdout: expect.stringMatching(exit === 0 ? /^ok/ : /^FAIL/) as string,
  })
}

describe.skipIf(missing !== undefined).each([
  ["this Debian's own", '', 'version = 2\n'],
  ["Debian's newest", newer, 'version = 3\n'],
  ["Debian's newest, with a configuration of the older format,", newer, 'version = 2\n'],
])('%s containerd', (_, root, format) => {
  test('containerd pulls through the mirror after the printed steps, and no longer after the undo', async () => {
    // Puts the version first, because below a heading it would belong to that table.
    const machine = await machineWith(root, format)
    const { apart, cri, scene } = machine
    const first = await startContainerd(machine, root)
    await expectCheck(apart, 5)

    const { todo } = await configured(apart)
    expect(todo).toHaveLength(1)
    // Follows the printed steps to the letter.
    const lines = todo[0]!.split('\n').filter((line) => line.startsWith('  '))
    await apart.run('sh', '-c', `printf '%s\\n' "$1" >> ${configFile}`, 'sh', lines.join('\n'))
    // Checks a right file that the daemon has not read yet; since 2.0 containerd does not report config_path over CRI.
    const unread = await configured(apart)
    expect(unread.saw!.join('\n')).toContain('(containerd config dump) is /etc/containerd/certs.d')
    if (root !== '') expect(unread.saw!.join('\n')).toContain('does not report its config_path')
    else {
      expect(unread).toMatchObject({ inUse: false, todo: [expect.stringContaining('restart containerd')] })
      expect(unread.saw!.join('\n')).toContain('in the running containerd is not set')
      expect((await apart.mirror('configure', '--check')).stdout).toContain('not restarted since config_path was set')
    }
    await first.stop()
    await startContainerd(machine, root)
    expect((await configured(apart)).todo).toEqual([])

    for (const reference of references) await cri.pullImage(reference)
    const asked = await scene.upstream.requests()
    expect(asked.filter(({ method, path }) => method === 'GET' && path.includes('/manifests/sha256'))).not.toEqual([])
    await expectCheck(apart, 0)
    expect(await apart.mirror('configure', 'containerd', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await readdir(apart.outside('/etc/containerd'))).toEqual(['config.toml'])
    await expectCheck(apart, 5)
  })
})

describe.skipIf(missing !== undefined).each([
  ["this Debian's own", ''],
  ["Debian's newest", newer],
])('%s containerd with CRI disabled', (_, root) => {
  test('the check of a containerd without CRI passes by a pull of ctr', async () => {
    const machine = await machineWith(root, 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    await startContainerd(machine, root)
    expect((await configured(machine.apart)).todo).toEqual([])
    await expectCheck(machine.apart, 0)
    expect(await machine.apart.mirror('configure', 'containerd', '--undo', '--yes')).toMatchObject({ exit: 0 })
    await expectCheck(machine.apart, 5)
  })
})

describe.skipIf(missing !== undefined)("a containerd with the user's own settings", () => {
  test('containerd still reads the hosts.toml files of the user, and pulls everything else through the mirror', async () => {
    const folders = '/etc/containerd/certs.d:/etc/containerd/mine'
    const section = '[plugins."io.containerd.grpc.v1.cri".registry]'
    const machine = await machineWith('', `version = 2\n${section}\nconfig_path = "${folders}"\n`)
    const { apart, cri, scene } = machine
    const theirs = `[host."${scene.upstream.url}"]\ncapabilities = ["pull", "resolve"]\n`
    await write(apart, '/etc/containerd/mine/theirs.example/hosts.toml', theirs)
    await startContainerd(machine, '')
    await configured(apart)
    expect(await readdir(apart.outside('/etc/containerd/certs.d'))).not.toContain('_default')
    for (const reference of references) await cri.pullImage(reference)
    await expectCheck(apart, 0)
    await cri.pullImage('theirs.example/org/app:one')
  })

  test('configure refuses a containerd with registry.mirrors, and changes no file', async () => {
    const section = '[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]'
    const machine = await machineWith('', `version = 2\n${section}\nendpoint = ["http://127.0.0.1:5055"]\n`)
    const refused = await machine.apart.mirror('configure', 'containerd', '--yes')
    expect(refused).toMatchObject({ exit: 2, stderr: expect.stringContaining('registry.mirrors') as string })
    expect(await readdir(machine.apart.outside('/etc/containerd'))).toEqual(['config.toml'])
  })
})
