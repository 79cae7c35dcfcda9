import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { createServer as createHttpServer, request } from 'node:http'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { type ProcessMirrorState, readState, writeState } from '../../src/admin/state.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import { commandEnv } from '../support/command-env.ts'
import { freePort } from '../support/free-port.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))

let home: string
let children: ChildProcess[]
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-again-'))
  children = []
})
afterEach(async () => {
  for (const child of children) if (child.exitCode === null) child.kill('SIGKILL')
  await mirror('down')
  await rm(home, { recursive: true })
})

function start(args: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [program, ...args], { env: { ...commandEnv(home), ...env }, cwd: home })
  children.push(child)
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const ended = once(child, 'close').then(([exit, signal]) => ({
    exit: (exit ?? signal) as number | string,
    stdout,
    stderr,
  }))
  return { child, ended, said: () => stderr }
}

const mirror = (...args: string[]) => start(args).ended
const status = async () => JSON.parse((await mirror('status', '--json')).stdout)

/** Returns a port that stays taken until the test ends. */
async function takenPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  return (server.address() as AddressInfo).port
}

describe('a mirror that `mirror up` is to replace', () => {
  test.each([['in the background', []] as const, ['in the foreground', ['--foreground']] as const])(
    'runs again as it was when the new one cannot start %s',
    async (_, more) => {
      const port = await freePort()
      await writeFile(join(home, 'mirror.yaml'), 'cache: {maxSize: 2GiB}')
      const { pid } = JSON.parse(
        (await mirror('up', '--json', '--cache-port', `${port}`, '--data', 'elsewhere')).stdout,
      )
      await writeFile(join(home, 'mirror.yaml'), 'cache: {maxSize: 1GiB}')
      const busyPort = await takenPort()
      const up = await mirror('up', '--registry-port', `${busyPort}`, ...more)
      expect(up).toMatchObject({ exit: 1, stdout: '' })
      expect(up.stderr).toContain(`Port ${busyPort} (registry) is already in use`)
      expect(up.stderr).toContain('The mirror that ran before runs again, as it was.')
      const now = await status()
      expect(now.pid).not.toBe(pid)
      expect(now).toMatchObject({
        endpoints: { cache: [`http://127.0.0.1:${port}`] },
        storage: { maxBytes: 2 * 1024 ** 3, path: createStoreLayout(join(home, 'elsewhere', 'cache')).home },
      })
      expect(await readdir(join(home, 'state'))).not.toContain('before.yaml')

      const replaced = JSON.parse((await mirror('up', '--json')).stdout)
      expect(replaced).toMatchObject({ outcome: 'replaced', changed: ['cache', 'data'] })
    },
  )

  test.each(['SIGTERM', 'SIGINT'] as const)('runs again when %s interrupts the replacement', async (signal) => {
    const up = JSON.parse((await mirror('up', '--json')).stdout)
    // Delay the end of the running mirror with a request that does not end.
    const upload = request(`${up.endpoints.registry[0]}/v2/app/blobs/uploads/?digest=sha256:${'0'.repeat(64)}`, {
      method: 'POST',
      headers: { 'content-length': '1000' },
    })
    upload.on('error', () => {})
    upload.write('the beginning')
    await new Promise((resolve) => setTimeout(resolve, 200))

    await writeFile(join(home, 'mirror.yaml'), 'cache: {maxSize: 1GiB}')
    const replacing = start(['up'])
    await expect
      .poll(
        () =>
          fetch(`${up.endpoints.cache[0]}/v2/`).then(
            () => 'listens',
            () => 'ends',
          ),
        { timeout: 10_000 },
      )
      .toBe('ends')
    replacing.child.kill(signal)
    await expect.poll(() => replacing.said()).toContain('Interrupted; cleaning up')
    upload.destroy()
    const { exit, stderr } = await replacing.ended
    expect(exit).toBe(130)
    expect(stderr).toContain('Interrupted. The mirror that ran before runs again, as it was.')
    expect(await status()).toMatchObject({ running: true, storage: { maxBytes: 20 * 1024 ** 3 } })
  })

  test('is reported as down when it cannot be restored either', async () => {
    const port = await freePort()
    await mirror('up', '--cache-port', `${port}`)
    const stateFile = join(home, 'state', 'mirror.json')
    const state = (await readState(stateFile)) as ProcessMirrorState
    await writeState(stateFile, { ...state, served: { config: { nonsense: true }, dataDir: join(home, 'data') } })
    const up = await mirror('up', '--cache-port', `${await takenPort()}`)
    expect(up.exit).toBe(1)
    expect(up.stderr).toMatch(
      /is already in use by .* The mirror that ran before could not be restored: The configuration has/s,
    )
    expect((await mirror('status')).exit).toBe(3)
  })
})

describe('`mirror up` with an unusable file in its configuration', () => {
  test.each([
    [
      'a password file that is not there',
      'registry: {auth: {htpasswd: ./none}}',
      /none cannot be used: it does not exist/,
    ],
    [
      'a bad password file',
      'registry: {auth: {htpasswd: ./mirror.yaml}}',
      /line 1 is not a user name and a bcrypt hash/,
    ],
    ['a certificate that is not there', 'tls: {cert: ./none.crt, key: ./none.key}', /The certificate and key of "tls"/],
    ['a bad CA of an upstream', 'upstreams: {a.example: {ca: ./mirror.yaml}}', /a\.example is not a PEM certificate/],
  ])('(%s) leaves the running mirror alone', async (_, config, reason) => {
    const { pid } = JSON.parse((await mirror('up', '--json')).stdout)
    await writeFile(join(home, 'mirror.yaml'), config)
    for (const more of [[], ['--foreground']]) {
      const up = await mirror('up', ...more)
      expect(up).toMatchObject({ exit: 2, stdout: '' })
      expect(up.stderr).toMatch(reason)
      expect(up.stderr).toContain('. Nothing was done.')
      expect(up.stderr).not.toContain('The mirror that ran before')
    }
    expect((await status()).pid).toBe(pid)
  })
})

describe('a flag of the last start', () => {
  test('that is not given again is named, with the command and the setting that keep it', async () => {
    await writeFile(join(home, 'mirror.yaml'), 'cache: {listen: ["127.0.0.1:0"]}')
    const env = { MIRROR_CACHE_LISTEN: '' }
    const port = await freePort()
    expect((await start(['up', '--cache-port', String(port)], env).ended).exit).toBe(0)
    const advice = `--cache-port was not given this time. To keep the mirror as it was: mirror up --cache-port ${port}   (or cache.listen in mirror.yaml, for every start)`
    const preview = await start(['up', '--dry-run'], env).ended
    expect(preview.stdout).toMatch(/^Would replace .*: changed: cache\.listen\.\n/)
    expect(preview.stdout).toContain(advice)
    const { stdout } = await start(['up'], env).ended
    expect(stdout).toContain(', restarted (changed: cache.listen)')
    expect(stdout).toContain(advice)
  })

  test('is not missed where mirror.yaml was edited since', async () => {
    await writeFile(join(home, 'mirror.yaml'), 'cache: {listen: ["127.0.0.1:0"]}')
    const env = { MIRROR_CACHE_LISTEN: '' }
    expect((await start(['up', '--cache-port', String(await freePort())], env).ended).exit).toBe(0)
    await writeFile(join(home, 'mirror.yaml'), 'cache: {listen: ["127.0.0.1:0"], maxSize: 1GiB}')
    const { stdout } = await start(['up', '--dry-run'], env).ended
    expect(stdout).toMatch(/: changed: cache\.listen, cache\.maxSize\.\n$/)
  })
})

describe('a network that --network names', () => {
  const networks = async () => (await readState(join(home, 'state', 'mirror.json')))!.served!.config['networks']

  test('is added to the configured ones, and `mirror up` without the flag reports that it goes away', async () => {
    expect((await mirror('up', '--network', 'dev')).exit).toBe(0)
    expect(await networks()).toEqual(['kind', 'dev'])
    const only = await mirror('up', '--dry-run')
    expect(only.stdout).toMatch(/Would replace .*: changed: networks\.\nContainers on dev then no longer reach it\./)
    const again = await mirror('up', '--network', 'other', '--json')
    expect(JSON.parse(again.stdout)).toMatchObject({
      outcome: 'replaced',
      changed: ['networks'],
      dropped: { networks: ['dev'], credentials: [] },
    })
    expect(await networks()).toEqual(['kind', 'other'])
    const { stdout } = await mirror('up')
    expect(stdout).toContain('Containers on other no longer reach it. To keep that: mirror up --network other')
  })
})

describe('a mirror that ran in a container the last time', () => {
  test.each([
    [
      'and has not been taken down',
      () =>
        writeState(join(home, 'state', 'mirror.json'), {
          version: '0.0.0',
          runtime: 'container',
          startedAt: '2026-01-02T03:04:05.000Z',
          configHashes: {},
          endpoints: { cache: [], registry: [], admin: ['http://127.0.0.1:1'], networks: {} },
          container: {
            id: 'gone',
            name: 'mirror',
            instance: 'this one',
            volume: undefined,
            credentials: [],
            handedOverAt: '2026-01-02T03:04:05.000Z',
          },
        }),
    ],
    [
      'and has left what it cached in a volume',
      async () => {
        await mkdir(join(home, 'state'), { mode: 0o700 })
        await writeFile(join(home, 'state', 'resting.json'), '{"volume":"mirror-data"}')
      },
    ],
  ])('%s is not started as a process when Docker is down', async (_, remember) => {
    await remember()
    for (const more of [[], ['--dry-run']]) {
      const { exit, stdout, stderr } = await mirror('up', ...more)
      expect({ exit, stdout }).toEqual({ exit: 4, stdout: '' })
      expect(stderr).toMatch(
        /The mirror ran in a container the last time\. No Docker engine answers: .*none\.sock does not exist/,
      )
      expect(stderr).toContain('mirror up --runtime process')
    }
    expect((await mirror('status')).exit).toBe(3)
    expect(await mirror('up', '--runtime', 'process')).toMatchObject({ exit: 0 })
    expect(JSON.parse((await mirror('up', '--json')).stdout), 'and that is remembered').toMatchObject({
      outcome: 'already-up',
    })
  })
})

test('`mirror up` reports the refusal of a Docker engine as a sentence with an exit code and without a stack', async () => {
  const engine = createHttpServer((request, response) => {
    if (request.url === '/_ping') return response.end('OK')
    return response
      .writeHead(500, { 'content-type': 'application/json' })
      .end('{"message":"the daemon is shutting down\\n"}')
  })
  await new Promise<void>((resolve) => engine.listen(join(home, 'none.sock'), resolve))
  onTestFinished(() => void engine.close())
  const up = await mirror('up', '--runtime', 'container')
  expect(up).toMatchObject({ exit: 1, stdout: '' })
  expect(up.stderr).toContain('mirror: The Docker engine refuses: the daemon is shutting down.\n')
  expect(up.stderr).not.toContain('bug')
  engine.closeAllConnections()
})
