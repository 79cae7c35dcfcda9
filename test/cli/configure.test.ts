import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, mkdir, mkdtemp, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, relative } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { parse } from 'yaml'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const nobody = 65_534
const before = '{\n  "debug": true\n}\n'

let folder: string
let root: string
let daemonJson: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-configure-'))
  root = join(folder, 'root')
  daemonJson = join(root, 'etc', 'docker', 'daemon.json')
  await mkdir(join(root, 'etc', 'docker'), { recursive: true })
  await writeFile(daemonJson, before)
})
afterEach(() => rm(folder, { recursive: true }))

function start(
  file: string,
  args: readonly string[],
  input: 'ignore' | 'pipe' = 'ignore',
  more: Record<string, string> = {},
) {
  const env = { PATH: process.env['PATH'], HOME: folder, MIRROR_HOME: join(folder, 'home'), TERM: 'xterm', ...more }
  return spawn(file, args, { cwd: folder, env, stdio: [input, 'pipe', 'pipe'] })
}

async function finished(child: ReturnType<typeof start>) {
  let stdout = ''
  let stderr = ''
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit, signal] = (await once(child, 'close')) as [number | null, string | null]
  return { exit: exit ?? signal, stdout, stderr }
}

/** Reports whether the test can run the program as another user: it takes root, and a checkout that others can read. */
function anotherUserCanRunIt(): boolean {
  if (process.getuid?.() !== 0) return false
  const reads = `fs.accessSync(${JSON.stringify(program)})`
  return spawnSync(process.execPath, ['-e', reads], { cwd: '/', uid: nobody, gid: nobody }).status === 0
}

const address = ['--mirror', 'http://127.0.0.1:5055']
const configure = (...args: string[]) =>
  finished(start(process.execPath, [program, 'configure', ...args, '--root', root]))

/** Runs `mirror configure` without --root, on a machine with two clients. */
async function configureHere(...args: string[]) {
  const bin = join(folder, 'bin')
  await mkdir(bin, { recursive: true })
  for (const name of ['skaffold', 'tilt']) await writeFile(join(bin, name), '#!/bin/sh\necho v1.2.3\n', { mode: 0o755 })
  const env = { PATH: bin, DOCKER_HOST: `unix://${folder}/no.sock` }
  return finished(start(process.execPath, [program, 'configure', ...args], 'ignore', env))
}

async function files(): Promise<Record<string, string>> {
  const found: Record<string, string> = {}
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name)
    if (entry.isFile()) found[relative(root, path)] = await readFile(path, 'utf8')
  }
  return found
}

describe('mirror configure', () => {
  test('shows the difference, and writes nothing without --yes', async () => {
    const result = await configure('docker', ...address)
    expect(result).toMatchObject({ exit: 2 })
    expect(result.stdout).toContain('+  "registry-mirrors": ["http://127.0.0.1:5055"]')
    expect(result.stdout).toContain(`--- ${daemonJson}`)
    expect(result.stderr).toContain('--yes')
    expect(await configure('docker', ...address, '--dry-run')).toMatchObject({ exit: 0 })
    expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
    expect(existsSync(join(folder, 'home', 'state'))).toBe(false)
  })

  test('reports as JSON what it did, lists it, and undoes it', async () => {
    const done = JSON.parse((await configure('docker', ...address, '--yes', '--json')).stdout)
    expect(done).toMatchObject({ client: 'docker', mirror: 'http://127.0.0.1:5055', applied: true })
    expect(done.changes).toContainEqual({ path: daemonJson, action: 'change' })
    expect(JSON.parse((await configure('docker', ...address, '--yes', '--json')).stdout).changes).toEqual([])

    const [listed] = JSON.parse((await configure('--list', '--json')).stdout)
    expect(listed).toMatchObject({ client: 'docker', mirror: 'http://127.0.0.1:5055' })
    expect(listed.files).toContainEqual({ path: daemonJson, state: 'as written' })
    await writeFile(daemonJson, `${await readFile(daemonJson, 'utf8')} `)
    const table = (await configure('--list')).stdout
    expect(table).toContain('changed since')

    const undone = await configure('docker', '--undo', '--yes')
    expect(undone.stderr).toContain('changed after mirror wrote it')
    expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({ debug: true })
    expect((await configure('docker', '--undo', '--yes')).stdout).toContain('Nothing to undo')
  })

  test('names the command that undoes what was written below --root', async () => {
    await configure('docker', ...address, '--yes')
    const undo = await configureHere('docker', '--undo')
    expect(undo).toMatchObject({ exit: 0, stdout: 'Nothing to undo for docker.\n' })
    expect(undo.stderr).toContain(`mirror configure docker --root ${root} --scope system --undo`)
  })

  test('offers `mirror configure` when a check finds nothing configured', async () => {
    const checked = await configureHere('--check')
    expect(checked).toMatchObject({ exit: 5, stderr: expect.stringContaining('\nNext:\n  mirror configure\n') })
  })

  test('undoes one of several files with the command that it printed', async () => {
    const names = ['one file.yaml', 'other.yaml']
    const text = 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n'
    for (const name of names) await writeFile(join(folder, name), text)
    const one = await configure('kind', ...address, '--yes', '--file', names[0]!)
    await configure('kind', ...address, '--yes', '--file', names[1]!)
    const file = join(folder, names[0]!)
    expect(one.stdout).toContain(`Undo with: mirror configure kind --root ${root} --file '${file}' --undo`)
    expect(await configure('kind', '--yes', '--file', names[0]!, '--undo')).toMatchObject({ exit: 0 })
    expect(await readFile(file, 'utf8')).toBe(text)
    expect(await readFile(join(folder, names[1]!), 'utf8')).toContain('extraMounts')
  })

  test.each([
    ['docker', '{}\n'],
    ['buildkit', 'debug = true\n'],
    ['kind', 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n'],
    ['k3d', 'kind: Simple\napiVersion: k3d.io/v1alpha5\n'],
  ])('prints, for a file of %s, how to undo that file alone', async (client, text) => {
    const names = ['one.conf', 'two.conf'].map((name) => join(folder, name))
    for (const name of names) await writeFile(name, text)
    await configure(client, ...address, '--yes', '--file', names[0]!)
    const two = await configure(client, ...address, '--yes', '--file', names[1]!)
    const undo = /Undo with: mirror configure \S+ (.*)/.exec(two.stderr + two.stdout)![1]!.split(' ')
    expect(two.stdout).not.toMatch(/^k3d[^]*Undo with/)
    expect(undo).toContain(names[1])
    await configure(client, ...undo.filter((word) => word !== '--root' && word !== root), '--yes')
    expect(await readFile(names[0]!, 'utf8')).not.toBe(text)
    expect(await readFile(names[1]!, 'utf8')).toBe(text)
  })

  test('with --root does not claim that it looked for containerd', async () => {
    const { stderr } = await configure('containerd', ...address, '--dry-run')
    expect(stderr).toContain('The version of containerd is assumed')
    expect(stderr).not.toContain('containerd was not found')
  })

  test('goes on with an undo of several clients when one fails, reports it, and ends with its exit code', async () => {
    await configure('docker', ...address, '--yes')
    await configure('podman', ...address, '--yes')
    await rm(join(folder, 'home', 'state', 'backups'), { recursive: true })
    const foretold = await configure('--undo', '--dry-run', '--json')
    expect(foretold).toMatchObject({ exit: 1 })
    expect(JSON.parse(foretold.stdout)).toMatchObject({
      undone: [{ client: 'podman', applied: false }],
      failed: [{ client: 'docker', place: 'system', error: expect.stringContaining('backup') }],
    })
    const undone = await configure('--undo', '--yes')
    expect(undone).toMatchObject({ exit: 1 })
    expect(undone.stdout).toContain('podman is as it was')
    expect(undone.stderr).toContain('Failed: docker')
    expect(undone.stderr).toContain(`The backup of ${daemonJson} cannot be read`)
    expect(JSON.parse((await configure('--list', '--json')).stdout)).toMatchObject([{ client: 'docker' }])
  })

  test('asks for --yes once, below all differences, when several clients are to be undone', async () => {
    await configure('docker', ...address, '--yes')
    await configure('podman', ...address, '--yes')
    const written = await files()
    const result = await configure('--undo')
    expect(result).toMatchObject({ exit: 2 })
    expect(result.stdout).toContain(`--- ${daemonJson}`)
    expect(result.stdout).toContain('registries.conf.d')
    expect(result.stderr).not.toContain('Failed')
    expect(result.stderr.match(/Not a terminal/g)).toHaveLength(1)
    expect(result.stderr.match(/--yes {3}/g)).toHaveLength(1)
    expect(await files()).toEqual(written)
    const asJson = await configure('--undo', '--json')
    expect(asJson).toMatchObject({ exit: 2 })
    expect(JSON.parse(asJson.stdout).failed).toHaveLength(2)
  })

  test('prints one JSON list for all clients of the machine', async () => {
    const args = [...address, '--yes', '--dry-run', '--json']
    const reports = JSON.parse((await configureHere(...args)).stdout)
    expect(reports).toContainEqual(expect.objectContaining({ client: 'skaffold', applied: false }))
    expect(reports).toContainEqual(expect.objectContaining({ client: 'tilt', applied: false }))
    expect(JSON.parse((await configure(...args)).stdout)).toEqual([])
  })

  test('--check fails when no configured client can be checked', async () => {
    expect(await configure('--check')).toMatchObject({
      exit: 5,
      stderr: expect.stringContaining('No client is configured by mirror on this machine'),
    })
    await configure('docker', ...address, '--yes')
    expect(await configure('--check', '--json')).toMatchObject({
      exit: 5,
      stdout: '',
      stderr: expect.stringContaining('No configured client can pull'),
    })
  })

  test('--check of all configured clients fails when no mirror runs', async () => {
    const configured = await configureHere('podman', ...address, '--scope', 'user', '--yes')
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    expect(await configureHere('--check')).toMatchObject({
      exit: 3,
      stderr: expect.stringContaining('mirror is not running'),
    })
  })

  test('reports once that no mirror runs, not once for each client', async () => {
    const { exit, stderr } = await configureHere('--yes')
    expect(exit).toBe(3)
    expect(stderr.match(/mirror is not running/g)).toHaveLength(1)
  })

  test.each([
    [['docker'], 3, 'mirror up'],
    [['docker', '--mirror', 'ftp://x'], 2, 'is not the URL of a mirror'],
    [['docker', '--mirror', 'http://x/path'], 2, 'is not the URL of a mirror'],
    [['dcoker', '--mirror', 'http://x:1'], 2, 'There is no client "dcoker"'],
    [['docker', '--undo', '--check'], 2, '--check and --undo exclude each other.'],
    [['docker', '--check'], 2, 'Cannot run a docker pull'],
  ])('fails for %j with exit code %i', async (args, exit, says) => {
    const answer = await configure(...args, '--yes')
    expect(answer, answer.stderr).toMatchObject({ exit, stdout: '' })
    expect(answer.stderr).toContain(says)
    expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
  })

  test.runIf(anotherUserCanRunIt())(
    "refuses another user's file in its own folder before it writes anything",
    async () => {
      await chmod(folder, 0o777)
      for (const path of [root, join(root, 'etc'), join(root, 'etc', 'docker')]) await chown(path, nobody, nobody)
      const asNobody = (...args: string[]) =>
        finished(
          spawn(process.execPath, [program, 'configure', ...args], {
            cwd: folder,
            env: { PATH: process.env['PATH'], HOME: folder, MIRROR_HOME: join(folder, 'home') },
            stdio: ['ignore', 'pipe', 'pipe'],
            uid: nobody,
            gid: nobody,
          }),
        )
      const refused = await asNobody('docker', ...address, '--yes', '--root', root)
      expect(refused).toMatchObject({ exit: 2 })
      expect(refused.stderr).toContain(`No permission to write ${daemonJson}`)
      // Expect the whole command, because sudo drops the variable and searches its own folders for programs.
      expect(refused.stderr).toContain(`sudo env MIRROR_HOME=${join(folder, 'home')} ${process.execPath} ${program} `)
      expect(refused.stderr).toContain(`configure docker ${address.join(' ')} --root ${root} --yes`)
      expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
      // A dry run needs no permission, and names the command that writes.
      const preview = await asNobody('docker', ...address, '--dry-run', '--root', root)
      expect(preview, preview.stderr).toMatchObject({ exit: 0, stdout: expect.stringContaining('+++') })
      expect(preview.stderr).toContain(`No permission to write ${daemonJson}.\nTo write it:\n  sudo env `)
      expect(preview.stderr).not.toContain('--dry-run')
      const json = await asNobody('docker', ...address, '--dry-run', '--json', '--root', root)
      expect(JSON.parse(json.stdout)).toMatchObject({
        changes: expect.arrayContaining([{ path: daemonJson, action: 'change' }]),
        applied: false,
      })
      expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
      expect(await asNobody('--list', '--root', root)).toMatchObject({ stdout: 'No client is configured by mirror.\n' })
    },
  )

  test.runIf(anotherUserCanRunIt())('names the chmod that opens a folder of the user', async () => {
    const closed = join(folder, '.config', 'containers', 'registries.conf.d')
    await mkdir(closed, { recursive: true })
    await chmod(folder, 0o755)
    await chown(closed, nobody, nobody)
    await chmod(closed, 0o500)
    const refused = await finished(
      spawn(process.execPath, [program, 'configure', 'podman', '--scope', 'user', ...address, '--yes'], {
        cwd: folder,
        env: { PATH: process.env['PATH'], HOME: folder, MIRROR_HOME: join(folder, 'home') },
        stdio: ['ignore', 'pipe', 'pipe'],
        uid: nobody,
        gid: nobody,
      }),
    )
    expect(refused).toMatchObject({ exit: 2 })
    expect(refused.stderr).toMatch(new RegExp(`\\nNext:\\n {2}chmod u\\+w ${closed}\\n$`))
  })

  test.runIf(anotherUserCanRunIt()).each([
    [0o644, 0o644],
    [0o664, 0o644],
    [0o640, 0o600],
    [0o604, 0o600],
  ])("changes a file of the user's own in another group, from mode %o to %o", async (mode, after) => {
    const file = join(folder, 'kind.yaml')
    await writeFile(file, 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n')
    await chmod(file, mode)
    await chown(file, nobody, 0)
    for (const path of [folder, root]) await chown(path, nobody, nobody)
    const asNobody = (...args: string[]) =>
      finished(
        spawn(process.execPath, [program, 'configure', 'kind', '--file', file, ...args], {
          cwd: folder,
          env: { PATH: process.env['PATH'], HOME: folder, MIRROR_HOME: join(folder, 'home') },
          stdio: ['ignore', 'pipe', 'pipe'],
          uid: nobody,
          gid: nobody,
        }),
      )
    const configured = await asNobody('--mirror', 'http://172.18.0.1:5055', '--yes')
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    const change = mode === after ? '' : `, and its mode becomes 0${after.toString(8)}`
    const flat = configured.stderr.replaceAll(/\s+/g, ' ')
    expect(flat).toContain(`${file} gets your group, because you are not in its group (0)${change}.`)
    const { uid, gid, mode: written } = await stat(file)
    expect({ uid, gid, mode: written & 0o7777 }).toEqual({ uid: nobody, gid: nobody, mode: after })
    const undone = await asNobody('--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await readFile(file, 'utf8')).toBe('kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n')
  })

  test.runIf(anotherUserCanRunIt())('names the command for root of a client that only root can configure', async () => {
    const bin = join(folder, 'bin')
    await mkdir(bin)
    const version = '#!/bin/sh\ncase "$1" in --version) echo "v1.2.3 1.6.20";; *) exit 1;; esac\n'
    for (const name of ['containerd', 'skaffold'])
      await writeFile(join(bin, name), name === 'skaffold' ? '#!/bin/sh\necho v1.2.3\n' : version, { mode: 0o755 })
    await chown(folder, nobody, nobody)
    const asNobody = (...args: string[]) =>
      finished(
        spawn(process.execPath, [program, 'configure', ...args], {
          cwd: folder,
          env: { PATH: bin, HOME: folder, MIRROR_HOME: join(folder, 'home'), DOCKER_HOST: `unix://${folder}/no.sock` },
          stdio: ['ignore', 'pipe', 'pipe'],
          uid: nobody,
          gid: nobody,
        }),
      )
    const { stdout } = await asNobody()
    expect(stdout).toMatch(/containerd [\d.]+: sudo .*configure containerd --scope system\n/)
    expect(stdout).toMatch(/skaffold v?1\.2\.3: mirror configure skaffold\n/)
    const refused = await asNobody('containerd', ...address, '--yes')
    expect(refused).toMatchObject({ exit: 2, stderr: expect.stringContaining('sudo ') })
    expect(refused.stderr, 'no containerd of this user runs').not.toContain('--scope user')
  })

  test('reports that docker is already configured, and that nothing can be reloaded', async () => {
    await configure('docker', ...address, '--yes')
    const again = await configure('docker', ...address, '--dry-run', '--reload')
    expect(again.stdout).toContain('docker is already configured')
    const reloaded = await configure('docker', ...address, '--yes', '--reload')
    expect(reloaded.stderr).toContain('nothing here that mirror could reload')
  })

  test('refuses --file for a client without files of the user, and writes no other file', async () => {
    const refused = await configure('podman', ...address, '--yes', '--file', 'mine.conf')
    expect(refused).toMatchObject({ exit: 2 })
    expect(refused.stderr).toContain('podman has no file of yours')
    expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
  })

  test.each([
    ['no mirror runs', [], 3, /mirror configure kind failed: mirror is not running/],
    ['a flag is wrong', ['--nonsense'], 2, /mirror configure kind failed: Nonexistent flag: --nonsense/],
    ['an address is none', ['--mirror', 'nonsense'], 2, /failed: "nonsense" is not the URL/],
  ])('prints, when %s, a document that makes kind stop with the reason', async (_, flags, exit, reason) => {
    const failed = await configureHere('kind', ...flags)
    expect(failed).toMatchObject({ exit, stderr: expect.stringMatching(/^mirror: /) })
    const { apiVersion, ...rest } = parse(failed.stdout)
    expect(rest).toEqual({ kind: 'Cluster' })
    expect(apiVersion).toMatch(reason)
  })

  test('prints, when it fails for k3d, a line that ends the shell with the same exit code', async () => {
    const { exit, stdout } = await configureHere('k3d', '--cluster', 'dev')
    expect(exit).toBe(3)
    expect(spawnSync('sh', { input: stdout })).toMatchObject({ status: 3, output: [null, Buffer.of(), Buffer.of()] })
  })

  test.each([
    ['kind', '--json'],
    ['kind', '--cluster', 'dev'],
    ['kind', '--file', 'kind.yaml'],
    ['kind', '--check'],
    ['docker'],
  ])('prints nothing on stdout when `%s %s` fails', async (...words) => {
    const failed = await configureHere(...words)
    expect(failed.exit).not.toBe(0)
    expect(failed.stdout).toBe('')
  })

  test('lists only the named client', async () => {
    await configure('docker', ...address, '--yes')
    expect((await configure('docker', '--list')).stdout).toContain(daemonJson)
    expect((await configure('podman', '--list')).stdout).toBe('No podman is configured by mirror.\n')
    expect(await configure('nobody', '--list')).toMatchObject({ exit: 2 })
  })

  test('leaves clients configured that `mirror down` then names', async () => {
    const listen = { MIRROR_CACHE_LISTEN: '127.0.0.1:0', MIRROR_REGISTRY_LISTEN: '127.0.0.1:0' }
    const env = { ...listen, MIRROR_ADMIN_LISTEN: '127.0.0.1:0', MIRROR_NETWORKS: '' }
    const mirror = (...args: string[]) => finished(start(process.execPath, [program, ...args], 'ignore', env))
    expect(await mirror('up')).toMatchObject({ exit: 0 })
    try {
      const written = await mirror('configure', 'podman', '--scope', 'user', '--yes')
      expect(written, written.stderr).toMatchObject({ exit: 0 })
      expect(existsSync(join(folder, '.config/containers/registries.conf.d/50-mirror.conf'))).toBe(true)

      // The check names the file that the client's own output refuses, and no other cause.
      const bin = join(folder, 'bin')
      await mkdir(bin)
      const says = 'Error: loading registries configuration "/etc/c/registries.conf": toml: line 10 (last key "a"): bad'
      await writeFile(join(bin, 'podman'), `#!/bin/sh\necho '${says}' >&2\nexit 125\n`, { mode: 0o755 })
      const check = (client: string) =>
        finished(start(process.execPath, [program, 'configure', client, '--check'], 'ignore', { ...env, PATH: bin }))
      const refused = await check('podman')
      expect(refused).toMatchObject({ exit: 5 })
      expect(refused.stdout).toContain('Likely cause:\n  1. podman cannot read /etc/c/registries.conf (line 10)\n')
      expect(refused.stdout).not.toContain('not configured')
      const missing = await check('minikube')
      expect(missing).toMatchObject({ exit: 5, stdout: expect.stringContaining('minikube is not installed.') })
      expect(missing.stdout).not.toContain('Likely cause')
      expect(await check('docker')).toMatchObject({
        exit: 4,
        stderr: expect.stringContaining('No Docker engine answers'),
      })
    } finally {
      const down = await mirror('down')
      expect(down.stderr).toContain('still points at the mirror. While it is down, pulls fall back to the registry.')
    }
    expect(await mirror('configure', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(existsSync(join(folder, '.config'))).toBe(false)
  })

  test('names the clients of the machine when it is run without a client', async () => {
    const bin = join(folder, 'bin')
    await mkdir(bin)
    await writeFile(join(bin, 'podman'), '#!/bin/sh\necho podman version 9.8.7\n', { mode: 0o755 })
    const found = await finished(start(process.execPath, [program, 'configure'], 'ignore', { PATH: bin }))
    expect(found).toMatchObject({ exit: 0 })
    expect(found.stdout).toContain('podman 9.8.7: mirror configure podman')
  })

  test('killed at any moment, leaves each file old or new, and undo restores the old ones', async () => {
    await configure('docker', ...address, '--yes')
    const after = await files()
    await configure('docker', '--undo', '--yes')
    let half = 0
    for (let round = 0; round < 12; round++) {
      const child = start(process.execPath, [program, 'configure', 'docker', ...address, '--yes', '--root', root])
      const ended = finished(child)
      // Wait until the command begins to write.
      while (child.exitCode === null && !existsSync(join(folder, 'home', 'state'))) await sleep(1)
      await sleep(round)
      child.kill('SIGKILL')
      await ended
      const now = await files()
      const whole = Object.entries(now).filter(([path]) => !/\/\.[^/]+$/.test(path))
      if (whole.length < Object.keys(after).length) half += 1
      for (const [path, content] of whole)
        expect([after[path], path.endsWith('daemon.json') ? before : undefined]).toContain(content)
      const undone = await configure('docker', '--undo', '--yes')
      expect(undone, undone.stderr).toMatchObject({ exit: 0 })
      expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
      await rm(join(folder, 'home', 'state'), { recursive: true, force: true })
    }
    expect(half).toBeGreaterThan(0)
  }, 60_000)
})

/** Uses `script` of util-linux, which runs a program in a terminal. */
describe.runIf(process.platform === 'linux' && existsSync('/usr/bin/script'))('mirror configure in a terminal', () => {
  async function atTerminal(command: string, answers: readonly [question: string, answer: string][], env = 'A=a') {
    const line = `env ${env} ${process.execPath} ${program} ${command}`
    const child = start('/usr/bin/script', ['-qec', line, '/dev/null'], 'pipe')
    let shown = ''
    let seen = 0
    const left = [...answers]
    child.stdout!.on('data', (chunk: Buffer) => {
      shown += chunk.toString()
      const [next] = left
      if (!next || !shown.includes(next[0], seen)) return
      // Continue after this question, because the next one can have the same text.
      seen = shown.length
      left.shift()
      child.stdin!.write(next[1])
    })
    const { exit } = await finished(child)
    child.stdin!.end()
    return { exit, shown, left }
  }

  test('asks one question, shows the difference in colour, and writes on Enter', async () => {
    const { exit, shown, left } = await atTerminal(`configure docker ${address.join(' ')} --root ${root}`, [
      ['Write this?', '\r'],
    ])
    expect({ exit, left }, shown).toEqual({ exit: 0, left: [] })
    expect(shown).toContain('\u001b[32m+  "registry-mirrors"')
    expect(await readFile(daemonJson, 'utf8')).toContain('registry-mirrors')
  })

  test('writes nothing when the answer is no', async () => {
    const { exit } = await atTerminal(`configure docker ${address.join(' ')} --root ${root}`, [['Write this?', 'n\r']])
    expect(exit).toBe(0)
    expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
  })

  test('writes nothing on Ctrl-C, and ends with 130', async () => {
    const { exit } = await atTerminal(`configure docker ${address.join(' ')} --root ${root}`, [
      ['Write this?', '\u0003'],
    ])
    expect(exit).toBe(130)
    expect(await files()).toEqual({ 'etc/docker/daemon.json': before })
  })

  /** Starts the parts of dockerd that a reload needs, with the daemon.json of the test. */
  async function startDockerd(): Promise<string> {
    const dockerd = fileURLToPath(new URL('../support/dockerd.mjs', import.meta.url))
    const socket = join(folder, 'docker.sock')
    const args = [dockerd, socket, daemonJson, '--config-file', daemonJson]
    const child = spawn(process.execPath, args, { argv0: 'dockerd', stdio: ['ignore', 'ignore', 'ignore', 'ipc'] })
    onTestFinished(async () => {
      const exited = once(child, 'exit')
      child.kill('SIGTERM')
      await exited
    })
    await once(child, 'message')
    return `DOCKER_HOST=unix://${socket}`
  }

  test('reports on Ctrl-C at the question for a reload which files are written and what is left to do', async () => {
    const engine = await startDockerd()
    const command = (args: string) => `env ${engine} ${process.execPath} ${program} configure docker ${args}`
    const interrupted = await atTerminal(
      `configure docker ${address.join(' ')}`,
      [
        ['Write this?', '\r'],
        ['Reload dockerd now', '\u0003'],
      ],
      engine,
    )
    expect(interrupted, interrupted.shown).toMatchObject({ exit: 130, left: [] })
    expect(interrupted.shown).toContain('Interrupted: docker is configured')
    expect(interrupted.shown).toContain(`${daemonJson} is written`)
    expect(interrupted.shown).toContain('kill -HUP')
    expect(interrupted.shown).toContain('--undo')
    expect(interrupted.shown).not.toContain('nothing was done')
    expect(await readFile(daemonJson, 'utf8')).toContain('registry-mirrors')

    // Offer the reload again, although the files are already right.
    const again = await atTerminal(`configure docker ${address.join(' ')}`, [['Reload dockerd now', '\r']], engine)
    expect(again, again.shown).toMatchObject({ exit: 0, left: [] })
    expect(again.shown).toContain('already configured')
    expect(again.shown).toContain('Sent SIGHUP to dockerd')
    const done = await finished(start('/bin/sh', ['-c', command(`${address.join(' ')} --yes --json`)]))
    expect(JSON.parse(done.stdout)).toMatchObject({ changes: [], inUse: true, todo: [] })

    const undone = await atTerminal(
      'configure docker --undo',
      [
        ['Undo this?', '\r'],
        ['Reload dockerd now', '\r'],
      ],
      engine,
    )
    expect(undone, undone.shown).toMatchObject({ exit: 0, left: [] })
    expect(await readFile(daemonJson, 'utf8')).toBe(before)
    expect((await finished(start('/bin/sh', ['-c', command('--list')]))).stdout).toContain('No docker is configured')
  })

  test('names on Ctrl-C at the second client the first one, which is done', async () => {
    const podman = join(root, 'etc/containers/registries.conf.d/50-mirror.conf')
    await configure('docker', ...address, '--yes')
    await configure('podman', ...address, '--yes')
    const { exit, shown } = await atTerminal(`configure --undo --root ${root}`, [
      ['Undo this?', '\r'],
      ['podman is as it was', ''],
      ['Undo this?', '\u0003'],
    ])
    expect(exit, shown).toBe(130)
    expect(shown).toContain('Interrupted. Done before: podman.')
    expect(existsSync(podman)).toBe(false)
    expect(await readFile(daemonJson, 'utf8')).toContain('registry-mirrors')
  })
})
