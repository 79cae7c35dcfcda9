import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { DockerApiServer, network } from '../support/docker-engine.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
/** Addresses of this machine that stand for the gateways of networks; only Linux has all of 127.0.0.0/8. */
const gateway = '127.0.0.94'
const otherGateway = '127.0.0.95'

let home: string
let engine: DockerApiServer
let port: number
let registryPort: number
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-moved-'))
  await mkdir(join(home, 'bin'))
  engine = new DockerApiServer()
  engine.changeNetworks([network('kind', gateway)])
  await engine.start(join(home, 'docker.sock'))
  ;[port, registryPort] = [await freePort(), await freePort()]
})
afterEach(async () => {
  await mirror('down')
  await engine.stop()
  await rm(home, { recursive: true })
})

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port: free } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return free
}

async function mirror(...args: string[]) {
  const env = {
    PATH: join(home, 'bin'),
    HOME: home,
    MIRROR_HOME: home,
    DOCKER_HOST: `unix://${home}/docker.sock`,
    MIRROR_CACHE_LISTEN: `127.0.0.1:${port}`,
    MIRROR_REGISTRY_LISTEN: `127.0.0.1:${registryPort}`,
    MIRROR_ADMIN_LISTEN: '127.0.0.1:0',
  }
  const child = spawn(process.execPath, [program, ...args], { env, cwd: home })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number]
  return { exit, stdout, stderr }
}

const up = async (...args: string[]) => JSON.parse((await mirror('up', '--json', ...args)).stdout)
const list = async () => JSON.parse((await mirror('configure', '--list', '--json')).stdout)
const mounted = () => readFile(join(home, 'state', 'kind', 'certs.d', '_default', 'hosts.toml'), 'utf8')

describe.skipIf(process.platform !== 'linux')('a mirror that has moved', () => {
  test('rewrites the files that nodes of kind mount, for a new port and for a new gateway', async () => {
    await up()
    const configured = await mirror('configure', 'kind')
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    expect(await mounted()).toContain(`http://${gateway}:${port}`)
    expect((await up()).clients).toEqual([])

    const [before, now] = [port, await freePort()]
    port = now
    expect((await up()).clients).toEqual([
      {
        client: 'kind',
        place: 'new clusters',
        title: expect.any(String),
        of: 'cache',
        from: `http://${gateway}:${before}`,
        to: `http://${gateway}:${now}`,
        rewritten: true,
      },
    ])
    expect(await mounted()).toContain(`http://${gateway}:${now}`)
    expect(await mounted()).not.toContain(`:${before}`)

    // Recreate the network with another gateway while the mirror is down.
    await mirror('down')
    engine.changeNetworks([network('kind', otherGateway)])
    const { stdout, stderr } = await mirror('up')
    expect(stdout).toContain(`pointed at http://${gateway}:${now}; its files say http://${otherGateway}:${now} now.`)
    expect(stderr).toContain('mirror status')
    expect(await mounted()).toContain(`http://${otherGateway}:${now}`)
    expect((await list())[0]).not.toHaveProperty('stale')

    const undone = await mirror('configure', 'kind', '--undo')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    await expect(mounted()).rejects.toMatchObject({ code: 'ENOENT' })
  })

  test('keeps files that the user has changed since, and names the command to run', async () => {
    await up()
    await mirror('configure', 'kind')
    const file = join(home, 'state', 'kind', 'certs.d', '_default', 'hosts.toml')
    const changed = `${await mounted()}\n# mine\n`
    await writeFile(file, changed)
    port = await freePort()
    expect((await up()).clients).toMatchObject([{ client: 'kind', rewritten: false, mend: 'mirror configure kind' }])
    expect(await mounted()).toBe(changed)
  })

  test('names clients with files of the user on every start, and lists their address as stale', async () => {
    await up()
    await mirror('configure', 'podman', '--scope', 'user', '--yes')
    expect((await list())[0].files[0].state).toBe('as written')
    const before = port
    port = await freePort()
    const moved = {
      client: 'podman',
      of: 'cache',
      from: `http://127.0.0.1:${before}`,
      to: `http://127.0.0.1:${port}`,
      rewritten: false,
      mend: 'mirror configure podman --scope user',
    }
    expect((await up()).clients).toMatchObject([moved])
    const again = await mirror('up')
    expect(again.stdout).toContain(`points at ${moved.from}, and the mirror is at ${moved.to} now.`)
    expect(again.stderr, 'what is next has been said').not.toContain('Next:')
    expect((await mirror('status')).stdout).toMatch(
      new RegExp(`^ {2}pending +podman, .*points at ${moved.from}, and the mirror is at ${moved.to} now`, 'm'),
    )
    const { stdout } = await mirror('configure', '--list')
    expect(stdout).toContain('stale address')
    expect(stdout).not.toContain('as written')
    expect(stdout).toContain(`${moved.from} is no address of the mirror, which is at ${moved.to} now.`)

    await mirror('configure', 'podman', '--scope', 'user', '--yes')
    expect((await up()).clients).toEqual([])
    expect((await list())[0].files[0].state).toBe('as written')
  })

  test('is found by a check without a scope, which names the command that fixes the client', async () => {
    await writeFile(join(home, 'bin', 'podman'), '#!/bin/sh\necho podman version 5.4.0\n', { mode: 0o755 })
    await up()
    await mirror('configure', 'podman', '--scope', 'user', '--yes')
    const before = port
    port = await freePort()
    await up()
    // Expect no request to the mirror, because the fake podman pulls nothing.
    const { exit, stdout } = await mirror('configure', 'podman', '--check', '--json')
    expect(exit).toBe(5)
    expect(JSON.parse(stdout)).toMatchObject({
      place: 'user',
      reasons: [
        {
          why: `podman is configured for http://127.0.0.1:${before}, and the mirror is at http://127.0.0.1:${port}`,
          fix: 'mirror configure podman --scope user',
        },
      ],
    })
  })

  test('does not name a client that was configured for another mirror with --mirror', async () => {
    await up()
    await mirror('configure', 'podman', '--scope', 'user', '--yes', '--mirror', 'http://10.9.8.7:5055')
    expect((await up()).clients).toEqual([])
    expect((await list())[0].files[0].state).toBe('as written')
  })

  test('names a client that was configured for its old address with --mirror', async () => {
    await up()
    await mirror('configure', 'podman', '--scope', 'user', '--yes', '--mirror', `http://127.0.0.1:${port}`)
    port = await freePort()
    expect((await up()).clients).toMatchObject([{ client: 'podman', rewritten: false }])
  })
})

test('`mirror up` prints the next step', async () => {
  const { stderr } = await mirror('up')
  // The step names the clients of this machine.
  expect(stderr).toMatch(/^Next: {2}mirror configure (?:CLIENT| {2}\(has [a-z0-9, and]+ pull through it\))/m)
})
