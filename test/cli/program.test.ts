import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { computeDigest } from '../../src/oci/reference.ts'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { commandEnv } from '../support/command-env.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))

let home: string
let servers: ChildProcess[]
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-cli-'))
  servers = []
})
afterEach(async () => {
  await mirror('down')
  for (const server of servers) if (server.exitCode === null) server.kill('SIGKILL')
  await rm(home, { recursive: true })
})

function start(args: string[], env: Record<string, string> = {}): ChildProcess {
  return spawn(process.execPath, [program, ...args], { env: { ...commandEnv(home), ...env }, cwd: home })
}

async function mirror(...args: string[]) {
  return finished(start(args))
}

async function finished(child: ChildProcess) {
  let stdout = ''
  let stderr = ''
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit, signal] = (await once(child, 'close')) as [number | null, string | null]
  return { exit: exit ?? signal, stdout, stderr }
}

const write = (text: string) => writeFile(join(home, 'mirror.yaml'), text)

describe('mirror up', () => {
  test('starts a mirror, keeps it while mirror.yaml is unchanged, and replaces it otherwise', async () => {
    const up = await mirror('up', '--json')
    expect(up).toMatchObject({ exit: 0, stderr: '' })
    const started = JSON.parse(up.stdout)
    expect(started).toMatchObject({ outcome: 'started', endpoints: { networks: {} } })
    expect((await fetch(`${started.endpoints.registry[0]}/v2/`)).status).toBe(200)
    expect((await fetch(`${started.endpoints.cache[0]}/v2/`)).status).toBe(200)

    expect(JSON.parse((await mirror('up', '--json')).stdout)).toMatchObject({ outcome: 'already-up', pid: started.pid })

    await write('log: {level: debug}\ncache: {maxSize: 1GiB}')
    const plan = await mirror('up', '--json', '--dry-run')
    expect(JSON.parse(plan.stdout)).toEqual({ action: 'replace', changed: ['cache', 'log'], dryRun: true })
    const replaced = await mirror('up')
    expect(replaced.stdout).toContain('changed: cache.maxSize, log.level')
    // The file was edited, so no flag is missed.
    expect(replaced.stdout).not.toContain('not given')
    expect(replaced.stderr).toContain('docker pull 127.0.0.1:')

    const status = JSON.parse((await mirror('status', '--json')).stdout)
    expect(status).toMatchObject({ running: true, runtime: 'process', storage: { maxBytes: 1024 ** 3 }, images: [] })
    expect(status.pid).not.toBe(started.pid)

    const down = await mirror('down')
    expect(down).toMatchObject({ exit: 0, stderr: '' })
    expect(down.stdout).toContain(`pid ${status.pid}`)
    expect(await mirror('down')).toMatchObject({ exit: 0, stdout: 'No mirror was running.\n' })
    await expect(stat(join(home, 'state/mirror.json'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('remembers the data folder, and `mirror down` names it', async () => {
    await writeFile(join(home, 'other.yaml'), 'log: {level: debug}')
    const { pid } = JSON.parse((await mirror('up', '--config', 'other.yaml', '--data', 'dd', '--json')).stdout)
    const down = await mirror('down')
    expect(down.stdout).toBe(`Stopped mirror (pid ${pid}). Its data stays in ${join(home, 'dd')}\n`)

    await mirror('up', '--data', 'dd')
    expect(JSON.parse((await mirror('down', '--json')).stdout)).toMatchObject({ dataDir: join(home, 'dd') })
  })

  test('starts again after a crash, and `mirror status` reports that the mirror died', async () => {
    const { pid } = JSON.parse((await mirror('up', '--json')).stdout)
    process.kill(pid, 'SIGKILL')
    await expect.poll(async () => (await mirror('status')).exit).toBe(3)
    const status = await mirror('status')
    expect(status.stdout).toBe('')
    expect(status.stderr).toMatch(
      /^mirror is not running: it died and was not stopped \(pid \d+, started at .*; last seen at .* ago\)\.\n {2}See why: +mirror logs\n {2}Start it: +mirror up\n$/,
    )
    const { running, died } = JSON.parse((await mirror('status', '--json')).stdout)
    expect(running).toBe(false)
    expect(died).toMatchObject({ reason: 'died', runtime: 'process', pid, hasLog: true })
    expect(Date.parse(died.lastSeen)).toBeLessThanOrEqual(Date.now())
    expect((await mirror('logs')).stdout).toContain('the mirror is up')

    expect(JSON.parse((await mirror('up', '--json')).stdout)).toMatchObject({ outcome: 'started' })
    const again = JSON.parse((await mirror('status', '--json')).stdout)
    process.kill(again.pid, 'SIGKILL')
    await expect.poll(async () => (await mirror('status')).exit).toBe(3)
    // `mirror down` removes the record: the crash is reported once.
    expect(await mirror('down')).toMatchObject({ exit: 0 })
    expect(JSON.parse((await mirror('status', '--json')).stdout)).toEqual({ running: false })
  })

  test('starts one mirror when it is called twice at once', async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as AddressInfo
    await new Promise((resolve) => server.close(resolve))
    const both = await Promise.all([0, 1].map(() => finished(start(['up', '--json', '--cache-port', `${port}`]))))
    expect(both.map(({ exit }) => exit)).toEqual([0, 0])
    const [a, b] = both.map(({ stdout }) => JSON.parse(stdout))
    expect(a.pid).toBe(b.pid)
  })

  test('names the process that holds a busy port, and the flag that helps', async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as AddressInfo
    const { exit, stdout, stderr } = await mirror('up', '--cache-port', `${port}`)
    server.close()
    expect({ exit, stdout }).toEqual({ exit: 1, stdout: '' })
    expect(stderr).toContain(`Port ${port}`)
    expect(stderr).toContain('mirror up --cache-port')
    if (process.platform === 'linux') expect(stderr).toContain(`pid ${process.pid}`)
  })

  test('reports every problem of a bad mirror.yaml, exits with 2 and starts nothing', async () => {
    await write('cache: {maxSize: lots}\nunknown: 1\n')
    const { exit, stderr } = await mirror('up')
    expect(exit).toBe(2)
    expect(stderr).toContain('mirror.yaml:1:18 cache.maxSize:')
    expect(stderr).toContain('mirror.yaml:2:1 unknown:')
    await expect(stat(join(home, 'state'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test.each([
    ['SIGTERM', 0],
    ['SIGINT', 0],
  ] as const)('--foreground serves until %s, and exits with 0', async (signal, exit) => {
    const child = start(['up', '--foreground'])
    servers.push(child)
    const ended = finished(child)
    await expect.poll(async () => (await mirror('status')).exit).toBe(0)
    child.kill(signal)
    expect(await ended).toMatchObject({ exit, stdout: expect.stringContaining('is up') })
    expect((await mirror('status')).exit).toBe(3)
  })
})

describe('mirror serve', () => {
  test('logs JSON lines on stderr, is found by other commands, and refuses a second server', async () => {
    const child = start(['serve'])
    servers.push(child)
    const ended = finished(child)
    await expect.poll(async () => (await mirror('status')).exit).toBe(0)
    const second = await mirror('serve')
    expect(second.exit).toBe(1)
    expect(second.stderr).toContain(`pid ${child.pid}`)
    expect((await mirror('down')).exit).toBe(0)
    const { exit, stdout, stderr } = await ended
    expect({ exit, stdout }).toEqual({ exit: 0, stdout: '' })
    for (const line of stderr.trim().split('\n')) expect(JSON.parse(line)).toHaveProperty('msg')
  })
})

describe('mirror', () => {
  test('status exits with 3 when no mirror runs', async () => {
    expect(await mirror('status', '--json')).toEqual({ exit: 3, stdout: '{\n  "running": false\n}\n', stderr: '' })
    expect(await mirror('status')).toMatchObject({ exit: 3, stdout: '', stderr: expect.stringContaining('mirror up') })
  })

  test('cache ls, prune, verify and rm work with and without a running mirror', async () => {
    for (const prepare of [[], ['up']]) {
      if (prepare.length > 0) await mirror(...prepare)
      expect(await mirror('cache', 'ls', '--json')).toMatchObject({ exit: 0, stdout: '[]\n' })
      expect(await mirror('cache', 'prune', '--dry-run')).toMatchObject({ exit: 0, stdout: 'Nothing to remove.\n' })
      expect(JSON.parse((await mirror('cache', 'verify', '--json')).stdout)).toMatchObject({ checked: 0, damaged: [] })
      const removal = await mirror('cache', 'rm', 'docker.io/library/none:1', '--json')
      expect(removal.exit).toBe(2)
      expect(JSON.parse(removal.stdout)).toMatchObject({ images: [], unknown: ['docker.io/library/none:1'] })
    }
  })

  test('registry ls, gc, prune and rm work with and without a running mirror', async () => {
    const up = JSON.parse((await mirror('up', '--json')).stdout)
    const [base] = up.endpoints.registry
    const config = Buffer.from('{}')
    const type = 'application/vnd.oci.image.manifest.v1+json'
    const descriptor = { mediaType: 'application/x', digest: computeDigest(config), size: 2 }
    for (const name of ['app', 'other']) {
      const body = { method: 'POST', body: config }
      expect((await fetch(`${base}/v2/${name}/blobs/uploads/?digest=${computeDigest(config)}`, body)).status).toBe(201)
      const manifest = JSON.stringify({ schemaVersion: 2, mediaType: type, config: descriptor, layers: [] })
      const put = { method: 'PUT', body: manifest, headers: { 'content-type': type } }
      expect((await fetch(`${base}/v2/${name}/manifests/v1`, put)).status).toBe(201)
    }
    for (const isUp of [true, false]) {
      if (!isUp) await mirror('down')
      expect(JSON.parse((await mirror('registry', 'ls', '--json')).stdout)).toMatchObject([
        { name: 'app:v1' },
        { name: 'other:v1' },
      ])
      expect((await mirror('registry', 'ls')).stdout).toContain('app:v1')
      const gc = await mirror('registry', 'gc', '--grace', '0', '--untagged', '--json')
      expect(JSON.parse(gc.stdout)).toMatchObject({ images: [], blobs: 0 })
      expect((await mirror('registry', 'prune', '--older-than', '1h', '--keep', '0')).stdout).toBe(
        'Nothing to remove.\n',
      )
      expect((await mirror('registry', 'rm', 'app:v1', '--dry-run')).stdout).toContain('app:v1')
      expect((await mirror('registry', 'rm', 'none:v1')).exit).toBe(2)
      const listed = await mirror('registry', 'rm', '*:v?', '--dry-run')
      expect(listed).toMatchObject({ exit: 0, stderr: '' })
      expect(listed.stdout).toMatch(/^Would remove: 2 images, .*\n {2}app:v1 {4}\d+ B\n {2}other:v1 {2}\d+ B\n$/)
      const unconfirmed = await mirror('registry', 'rm', '*:v?')
      expect(unconfirmed).toMatchObject({ exit: 2, stdout: '', stderr: expect.stringContaining('--yes') as string })
      expect((await mirror('registry', 'rm', '*:none-*', '--yes')).exit).toBe(2)
    }
    expect((await mirror('registry', 'rm', 'ap?:v*')).exit).toBe(0)
    expect(await mirror('registry', 'prune', 'nope')).toMatchObject({ exit: 2, stdout: '' })
    expect((await mirror('registry', 'prune', 'ohter')).stderr).toContain(
      'There is no repository ohter. Did you mean other?',
    )
    const pruned = await mirror('registry', 'prune', '--older-than', '0', '--keep', '0', 'other')
    const later =
      'Unreferenced content of 2 B is removed after 24 h, because a push may still need it. To remove it now: mirror registry gc --grace 0\n'
    expect(pruned).toMatchObject({ exit: 0, stdout: expect.stringContaining(`  other:v1\n${later}`) as string })
    expect((await mirror('registry', 'gc')).stdout).toBe(`Nothing to remove.\n${later}`)
    expect((await mirror('registry', 'gc', '--grace', '0')).stdout).not.toContain('24 h')
    expect((await mirror('registry', 'gc')).stdout).toBe('Nothing to remove.\n')
    expect((await mirror('registry', 'ls', '--json')).stdout).toBe('[]\n')
    expect((await mirror('registry', 'ls')).stderr).toBe('The registry holds no images.\n')
    expect((await mirror('registry', 'gc', '--grace', 'long')).exit).toBe(2)
  })

  test('logs prints the end of the log', async () => {
    expect((await mirror('logs')).exit).toBe(3)
    await mirror('up')
    const { exit, stdout } = await mirror('logs', '--lines', '1')
    expect(exit).toBe(0)
    expect(stdout).toMatch(/^\d\d:\d\d:\d\d info {2}the mirror is up {2}endpoints\.cache=http:\S+ .*\n$/)
    expect(JSON.parse((await mirror('logs', '--lines', '1', '--json')).stdout)).toHaveProperty('time')
  })

  test('up warns of each password that cannot be read, and status shows its upstream as failing', async () => {
    const upstreams = {
      'env.example': { credentials: { username: 'me', passwordEnv: 'NOPE' } },
      'file.example': { credentials: { username: 'me', passwordFile: join(home, 'nope') } },
    }
    await write(JSON.stringify({ upstreams }))
    const { exit, stdout, stderr } = await mirror('up')
    expect(exit).toBe(0)
    expect(stderr).toContain('The credential for env.example cannot be used: the environment variable NOPE is not set.')
    expect(stderr).toMatch(/The credential for file\.example cannot be used: the file \S+ cannot be read \(ENOENT\)\./)
    const { cache } = (JSON.parse((await mirror('status', '--json')).stdout) as { endpoints: { cache: [string] } })
      .endpoints
    expect((await fetch(`${cache[0]}/v2/env.example/a/b/manifests/1`)).status).toBe(503)
    const status = await mirror('status')
    expect(status.stdout).toMatch(/^env\.example .* failing$/m)
    expect(status.stdout).toMatch(/failing {3}upstream env\.example: its credential .*NOPE is not set\. Next: set it, /)
    expect(stdout).not.toContain('NOPE')
  })

  test('up warns of each upstream that is reached by plain HTTP', async () => {
    const upstreams = { 'docker.io': { url: 'http://cache.example' }, 'ghcr.io': { url: 'https://cache.example' } }
    await writeFile(join(home, 'mirror.yaml'), JSON.stringify({ upstreams }))
    for (const args of [['up', '--dry-run'], ['up']]) {
      const { exit, stderr } = await mirror(...args)
      expect(exit).toBe(0)
      expect(stderr).toContain('docker.io is reached over plain HTTP (unencrypted): http://cache.example\n')
      expect(stderr).not.toContain('ghcr.io is reached')
    }
    expect((await mirror('up')).stderr).not.toContain('plain HTTP')
  })

  test('status names an edited mirror.yaml that is not applied', async () => {
    await mirror('up')
    expect((await mirror('status')).stdout).not.toContain('pending')
    await writeFile(join(home, 'mirror.yaml'), 'cache: {maxSize: 7GiB}\n')
    const { stdout } = await mirror('status')
    expect(stdout).toMatch(/^ {2}pending +the edited \S+mirror\.yaml is not applied \(cache\)\. Next: mirror up/m)
    expect(JSON.parse((await mirror('status', '--json')).stdout).pending).toHaveLength(1)
    await writeFile(join(home, 'mirror.yaml'), 'cache: [\n')
    expect((await mirror('status')).stdout).toContain('is not valid now. Next: mirror doctor')
  })

  test('init writes a valid mirror.yaml, and does not overwrite it', async () => {
    const schema = join(home, 'mirror.schema.json')
    expect((await mirror('init', '--dry-run')).stderr).toContain(`Would write ${schema}`)
    const { exit, stdout, stderr } = await mirror('init', '--max-size', '5GiB', '--upstream', 'registry.corp.example')
    expect({ exit, stdout }).toEqual({ exit: 0, stdout: `${join(home, 'mirror.yaml')}\n` })
    expect(stderr).toContain(`Wrote the schema, with which editors complete and check the settings: ${schema}\n`)
    expect((await mirror('init', '--dry-run')).stderr).not.toContain(schema)
    const text = await readFile(join(home, 'mirror.yaml'), 'utf8')
    expect(text).toContain('maxSize: 5GiB')
    expect((await mirror('up', '--dry-run')).exit).toBe(0)
    expect((await mirror('init')).exit).toBe(2)
    expect((await mirror('init', '--force', '--dry-run')).stdout).toContain('maxSize: 20GiB')
    expect(await readFile(join(home, 'mirror.yaml'), 'utf8')).toBe(text)
    const forced = await mirror('init', '--force')
    expect(forced.stdout).toBe(`${join(home, 'mirror.yaml')}\n`)
    expect(forced.stderr).toContain(`Kept the old file as ${join(home, 'mirror.yaml.bak')}\n`)
    expect(await readFile(join(home, 'mirror.yaml.bak'), 'utf8')).toBe(text)
  })

  test('init repeats the command for a template that exists already', async () => {
    const file = join(home, 'my compose.yaml')
    await writeFile(file, 'mine')
    const { exit, stderr } = await mirror('init', '--template', 'compose', '-o', file)
    expect(exit).toBe(2)
    expect(stderr).toContain(`mirror init --template compose -o '${file}' --dry-run `)
    expect(stderr).toContain(`mirror init --template compose -o '${file}' --force `)
    const preview = await mirror('init', '--template', 'compose', '-o', file, '--dry-run')
    expect(preview.stdout).toContain('services:')
    expect(preview.stderr).toBe(`Would write ${file}\n`)
  })

  test.each([
    [['up', '--unknown']],
    [['up', '--cache-port', 'x']],
    [['up', '--runtime', 'other']],
    [['up', '--config', 'absent.yaml']],
    [['cache', 'rm']],
    [['unknown']],
  ])('exits with 2 after wrong usage: %j', async (args) => {
    expect(await mirror(...args)).toMatchObject({ exit: 2, stdout: '' })
  })

  test('status --watch ends with 130 on Ctrl-C', async () => {
    const child = start(['status', '--watch'])
    const ended = finished(child)
    await once(child.stdout!, 'data')
    child.kill('SIGINT')
    expect((await ended).exit).toBe(130)
  })

  test('has examples for every command and a description of every flag in its help', async () => {
    const manifest = JSON.parse(
      await readFile(fileURLToPath(new URL('../../oclif.manifest.json', import.meta.url)), 'utf8'),
    )
    for (const command of Object.values<{
      id: string
      examples?: unknown[]
      flags: Record<string, { description?: string }>
    }>(manifest.commands)) {
      expect(command.examples, command.id).not.toHaveLength(0)
      // test/cli/variables.test.ts checks which flags have a variable.
      for (const [name, flag] of Object.entries(command.flags))
        expect(flag.description, `${command.id} --${name}`).toMatch(/\S/)
    }
    expect((await mirror('up', '--help')).stdout).toContain('EXAMPLES')
  })
})
