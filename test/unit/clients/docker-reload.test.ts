import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { createDockerReload } from '../../../src/clients/docker/dockerd.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'
import { type Clock, systemClock } from '../../../src/lib/time.ts'
import { findDockerd, resolveDockerdPath } from '../../../src/clients/docker/engines.ts'
import { createDockerEngine } from '../../../src/docker/dockerode-engine.ts'

const program = fileURLToPath(new URL('../../support/dockerd.mjs', import.meta.url))

let folder: string
let daemonJson: string
let endpoint: { kind: 'socket'; path: string }
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-reload-'))
  daemonJson = join(folder, 'daemon.json')
  endpoint = { kind: 'socket', path: join(folder, 'docker.sock') }
  await writeFile(daemonJson, '{}')
})
afterEach(() => rm(folder, { recursive: true }))

/** Starts a process named dockerd; returns its process id. */
async function startDockerd(socket = endpoint.path): Promise<number> {
  const args = [program, socket, daemonJson, '--config-file', 'daemon.json']
  const child = spawn(process.execPath, args, {
    argv0: 'dockerd',
    cwd: folder,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  onTestFinished(async () => {
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  await once(child, 'message')
  return child.pid!
}

/** Returns a clock that jumps ahead with each read. */
function createFastClock(): Clock {
  let now = 0
  return { ...systemClock, monotonic: () => (now += 1000), sleep: () => Promise.resolve() }
}

const mirrors = async () => (await createDockerEngine(endpoint).findInfo())?.mirrors

describe.runIf(process.platform === 'linux')('a reload of the dockerd behind a socket', () => {
  test('finds it among other processes, with its arguments', async () => {
    await startDockerd(join(folder, 'other.sock'))
    expect(await findDockerd(endpoint)).toBeUndefined()
    const pid = await startDockerd()
    const found = await findDockerd(endpoint)
    expect(found).toMatchObject({ pid, program: process.execPath, folder, sharesNetwork: true })
    expect(found!.args.slice(-2)).toEqual(['--config-file', 'daemon.json'])
    expect(resolveDockerdPath(found!, 'daemon.json')).toBe(daemonJson)
    expect(await findDockerd({ kind: 'tcp', host: '127.0.0.1', port: 2375, tlsFolder: undefined })).toBeUndefined()
  })

  test('applies its file, including removed mirrors', async () => {
    await startDockerd()
    const reload = createDockerReload({ endpoint, daemonJson, dockerd: undefined, isRootless: false }, systemClock)
    const text = '{"registry-mirrors": ["http://127.0.0.1:5055"]}'
    await writeFile(daemonJson, text)
    await reload.run()
    expect(await mirrors()).toEqual(['http://127.0.0.1:5055/'])

    const files = new FilesSnapshot(new Map([[daemonJson, Buffer.from(text)]]))
    const [interim] = reload.planInterim!({ cache: 'http://127.0.0.1:5055' }, files)
    expect(interim?.after).toBe('{"registry-mirrors": []}')
    await writeFile(daemonJson, interim!.after!)
    await reload.run()
    expect(await mirrors()).toEqual([])
  })

  test('fails when dockerd keeps its mirrors', async () => {
    await startDockerd()
    const other = join(folder, 'other.json')
    await writeFile(other, '{"registry-mirrors": ["http://127.0.0.1:5055"]}')
    const misled = createDockerReload(
      { endpoint, daemonJson: other, dockerd: undefined, isRootless: false },
      createFastClock(),
    )
    await expect(misled.run()).rejects.toThrow('its mirrors still differ')
  })

  test('fails without a running dockerd', async () => {
    await expect(
      createDockerReload({ endpoint, daemonJson, dockerd: undefined, isRootless: false }, systemClock).run(),
    ).rejects.toThrow(expect.objectContaining({ exit: 4 }))
  })
})
