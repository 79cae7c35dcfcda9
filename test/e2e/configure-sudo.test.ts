import { chmod, mkdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { startDockerd, dockerSocket, type Dockerd } from './support/dockerd.ts'
import { run } from './support/run.ts'
import { runnableImage } from './support/runnable-image.ts'
import { setStage } from './support/scene.ts'
import { addSudoUser, installSudo, sudoLine, type SudoUser } from './support/sudo-user.ts'

const { missing } = inject('e2e')

const mirrorsOf = (dockerd: Dockerd) => dockerd.docker('info', '--format', '{{json .RegistryConfig.Mirrors}}')
const none = /^(null|\[\])\n$/
const ours = '["http://127.0.0.1:5055/"]\n'

describe.skipIf(missing !== undefined)('an ordinary user in group docker, with sudo', () => {
  let removeSudo: () => Promise<void>
  beforeAll(async () => {
    removeSudo = await installSudo()
  }, 240_000)
  afterAll(() => removeSudo(), 240_000)

  /** Starts dockerd 20.10 at the usual socket, and the mirror of a new user. */
  async function setUp(mode?: number): Promise<{ dockerd: Dockerd; user: SudoUser; before: Buffer }> {
    const image = await runnableImage(21, 'docker')
    const stage = await setStage({ content: { 'library/runnable': { one: image } } })
    const hosts = [`unix://${dockerSocket(stage.folder)}`, 'unix:///var/run/docker.sock']
    const dockerd = await startDockerd(stage, '', { hosts })
    if (mode !== undefined) await chmod(dockerd.configFile, mode)
    const user = await addSudoUser(stage.folder, dockerd.enter)
    const folder = join(user.home, '.config', 'mirror')
    await mkdir(folder, { recursive: true })
    const upstreams = { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } }
    await writeFile(join(folder, 'mirror.yaml'), JSON.stringify({ networks: [], upstreams }))
    const [file, ...args] = dockerd.enter(['chown', '-R', `${user.name}:`, user.home])
    await run(file!, args)
    const up = await user.mirror('up')
    expect(up, up.stderr).toMatchObject({ exit: 0 })
    return { dockerd, user, before: await readFile(dockerd.configFile) }
  }

  test('a user in group docker configures docker by the printed sudo command, lists it, checks it, and undoes it', async () => {
    const { dockerd, user, before } = await setUp()
    const refused = await user.mirror('configure', 'docker', '--yes')
    expect(refused, refused.stderr).toMatchObject({
      exit: 2,
      stderr: expect.stringContaining('No permission to write'),
    })
    const done = await user.shell(sudoLine(refused))
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    expect(JSON.parse(await readFile(dockerd.configFile, 'utf8'))).toMatchObject({
      'registry-mirrors': ['http://127.0.0.1:5055'],
    })
    const [listed] = JSON.parse((await user.mirror('configure', '--list', '--json')).stdout)
    expect(listed).toMatchObject({ client: 'docker', files: [{ path: dockerd.configFile, state: 'as written' }] })

    // Checks right files that dockerd has not read yet.
    expect(await mirrorsOf(dockerd)).toMatch(none)
    const again = await user.mirror('configure', 'docker', '--yes', '--json')
    expect(JSON.parse(again.stdout)).toMatchObject({ changes: [], inUse: false, reloaded: false })
    expect(again.stdout).toContain(`sudo kill -HUP ${dockerd.pid}`)
    const unseen = await user.mirror('configure', '--check')
    expect(unseen).toMatchObject({ exit: 5 })
    expect(unseen.stdout).toContain('docker info (Docker 20.10.24+dfsg1, classic image store) lists no mirror')
    expect(unseen.stdout).not.toContain('not configured')
    const reloaded = await user.shell(`${sudoLine(refused)} --reload`)
    expect(reloaded, reloaded.stderr).toMatchObject({ exit: 0 })
    expect(await mirrorsOf(dockerd)).toBe(ours)
    const checked = await user.mirror('configure', '--check')
    expect(checked, checked.stdout).toMatchObject({ exit: 0, stdout: expect.stringMatching(/^ok/) })

    // Proves that root finds the mirror of the calling user, and does not stop it.
    const sudo = sudoLine(refused).replace(/ configure .*/, '')
    expect(JSON.parse((await user.shell(`${sudo} status --json`)).stdout)).toMatchObject({
      running: true,
      user: 'alice',
    })
    expect(await user.shell(`${sudo} down`)).toMatchObject({ exit: 0, stderr: expect.stringContaining('of alice') })
    expect(await user.shell(`${sudo} configure docker --check`)).toMatchObject({ exit: 0 })
    // Proves that root with the user's HOME uses no record that the user could change, and leaves no file there.
    const kept = await user.shell(`${sudo.replace('sudo', 'sudo -E')} configure --list --json`)
    expect(JSON.parse(kept.stdout), kept.stderr).toMatchObject([{ client: 'docker' }])
    expect(await user.shell(`${sudo.replace('sudo', 'sudo -E')} configure docker --check`)).toMatchObject({ exit: 0 })
    const down = await user.mirror('down')
    expect(down.stderr).toContain('Docker (system) still points at the mirror')
    expect(sudoLine(down)).toBe(`${sudo} configure --undo`)

    const locked = await user.mirror('configure', '--undo', '--yes')
    expect(locked).toMatchObject({ exit: 2, stderr: expect.stringContaining('only root can undo') })
    const undone = await user.shell(sudoLine(locked))
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect(undone.stderr).not.toContain('restart')
    // Checks that `--list` shows the undo as not reloaded, because a reload of dockerd ignores a removed key.
    expect(await mirrorsOf(dockerd)).toBe(ours)
    expect((await user.mirror('configure', '--list')).stdout).toContain('undone, not reloaded')
    const forgotten = await user.shell(sudoLine({ ...undone, stderr: undone.stderr.replace('To do: ', '') }))
    expect(forgotten, forgotten.stderr).toMatchObject({ exit: 0 })
    expect(await mirrorsOf(dockerd)).toMatch(none)
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect((await user.mirror('configure', '--list')).stdout).toBe('No client is configured by mirror.\n')
    // Proves that sudo left no file of root in the user's home folder.
    expect((await user.shell('find . -not -user alice')).stdout).toBe('')
  })

  test.each([
    ['sudo -E', (line: string) => `sudo -E ${line}`],
    ['sudo --preserve-env', (line: string) => `sudo --preserve-env=HOME,XDG_STATE_HOME,TMPDIR,DOCKER_CONFIG ${line}`],
    ['su -m', (line: string) => `sudo -E env -u SUDO_UID -u SUDO_GID -u SUDO_USER su -m -c '${line}'`],
  ])("root by %s runs no program of the user and leaves no file in the user's folders", async (_, asRoot) => {
    const { user } = await setUp()
    const folders =
      'export XDG_STATE_HOME=$HOME/.local/state TMPDIR=$HOME/tmp DOCKER_CONFIG=$HOME/.docker; mkdir -p tmp'
    const root = (...args: string[]) => user.shell(`${folders}; ${asRoot([user.program, ...args].join(' '))}`)
    const evil = '#!/bin/sh\ntouch $HOME/has-run\n'
    await user.shell(`mkdir -p .docker bin; echo '{"credsStore": "evil"}' > .docker/config.json`)
    await user.shell(`printf '${evil}' | tee bin/docker bin/kind bin/docker-credential-evil; chmod +x bin/*`)

    const status = await root('status', '--json')
    expect(JSON.parse(status.stdout), status.stderr).toMatchObject({ running: true, user: 'alice' })
    expect(status.stderr).toContain(`HOME=${user.home}   (${user.home} belongs to alice; /root takes its place)`)
    expect(status.stderr).toContain('without sudo, as alice')
    // Commands that need a running mirror use the one of the user.
    for (const args of [
      ['cache', 'ls', '--json'],
      ['registry', 'ls', '--json'],
      ['cache', 'prune', '--json'],
    ])
      expect(await root(...args), args.join(' ')).toMatchObject({ exit: 0 })
    expect(await root('logs')).toMatchObject({
      exit: 3,
      stderr: expect.stringContaining('only alice can read its log'),
    })
    expect(await root('down')).toMatchObject({ exit: 0, stderr: expect.stringContaining('of alice') })
    // Checks that a mirror of root refuses a home folder that belongs to the user.
    for (const args of ['up', 'serve', 'init --yes']) {
      const refused = await user.shell(asRoot(`env MIRROR_HOME=${user.home}/m ${user.program} ${args}`))
      expect(refused, args).toMatchObject({ exit: 2, stderr: expect.stringContaining(`MIRROR_HOME=${user.home}/m`) })
    }
    await user.shell('echo "kind: Cluster" > kind.yaml; ln -s /etc/shadow link.yaml')
    for (const file of ['kind.yaml', 'link.yaml'])
      expect(await root('configure', 'kind', '--yes', '--file', `${user.home}/${file}`)).toMatchObject({ exit: 2 })
    await root('configure', 'kind', '--yes')
    await root('configure', 'k3d', '--yes')
    await root('up', '--dry-run')

    expect((await user.shell('find . -not -user alice -o -name has-run')).stdout).toBe('')
    expect((await user.shell('ls tmp')).stdout).toBe('')
    // Proves that the user's commands still work.
    expect(JSON.parse((await user.mirror('status', '--json')).stdout)).toMatchObject({ running: true })
    expect(await user.mirror('configure', '--list')).toMatchObject({ exit: 0 })
    expect(await user.mirror('down')).toMatchObject({ exit: 0 })
    // Checks that `up` names the files that an older version left as root, with the command that returns them.
    await user.shell('sudo chown -R root: .local/state/mirror')
    const locked = await user.mirror('up')
    expect(locked, locked.stderr).toMatchObject({
      exit: 1,
      stderr: expect.stringContaining(`root owns ${user.home}`),
    })
    const given = await user.shell(sudoLine(locked))
    expect(given, given.stderr).toMatchObject({ exit: 0 })
    expect(await user.mirror('up')).toMatchObject({ exit: 0 })
    expect(await user.mirror('down')).toMatchObject({ exit: 0 })
  })

  test('a user learns nothing about a daemon.json that only root can read, not even from its backup', async () => {
    const { dockerd, user, before } = await setUp(0o600)
    const refused = await user.mirror('configure', 'docker', '--yes')
    expect(refused, refused.stderr).toMatchObject({ exit: 2, stderr: expect.stringContaining('No permission to read') })
    const done = await user.shell(sudoLine(refused))
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    expect((await stat(dockerd.configFile)).mode & 0o777).toBe(0o600)
    const [listed] = JSON.parse((await user.mirror('configure', '--list', '--json')).stdout)
    expect(listed.files).toEqual([{ path: dockerd.configFile, state: 'unreachable' }])
    const found = await user.shell('find /var/lib/mirror -type f -readable')
    expect(found.stdout.trim().split('\n')).toEqual([expect.stringMatching(/configured\/docker-\w+\.json$/)])
    expect(await user.shell(sudoLine(refused).replace('--yes', '--undo --yes --reload'))).toMatchObject({
      exit: 0,
    })
    expect(await readFile(dockerd.configFile)).toEqual(before)
    await user.mirror('down')
  })
})
