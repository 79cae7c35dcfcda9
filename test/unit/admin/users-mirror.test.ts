import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chown, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { findInvokingUser, findRunningMirror } from '../../../src/admin/find-mirror.ts'
import { writeState } from '../../../src/admin/state.ts'
import { findMirrorAddress } from '../../../src/clients/find-mirror.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { getProcessIdentity } from '../../../src/lib/process.ts'

const nobody = 65_534

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-user-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function processOf(uid: number): Promise<number> {
  const child = spawn('sleep', ['60'], { uid, gid: uid, stdio: 'ignore' })
  onTestFinished(async () => {
    const exited = once(child, 'exit')
    child.kill()
    await exited
  })
  return child.pid!
}

/** Returns the state that a mirror with this process id records, without its addresses. */
async function stateOf(pid: number) {
  return {
    pid,
    processIdentity: await getProcessIdentity(pid),
    version: '1',
    runtime: 'process' as const,
    startedAt: '2026-01-01T00:00:00.000Z',
    configHashes: {},
    logFile: undefined,
  }
}

const nowhere = { cache: [], registry: [], admin: [], networks: {} }

async function writeStateOf(uid: number, pid: number, more: object = {}): Promise<void> {
  const state = join(folder, 'home', 'state')
  await mkdir(state, { recursive: true })
  const endpoints = {
    cache: ['http://127.0.0.1:6055', 'http://mirror.evil.example:5055', 'http://127.0.0.1.evil.example:5055'],
    registry: ['http://203.0.113.7:5001'],
    admin: ['http://localhost:6056', 'file:///etc/shadow', 'http://127.0.0.1:1/path', 'no url'],
    networks: { kind: 'http://mirror:5055', other: 'http://evil.example:5055' },
  }
  const text = JSON.stringify({ ...(await stateOf(pid)), endpoints, ...more })
  await writeFile(join(state, 'mirror.json'), text)
  for (const path of [join(folder, 'home'), state, join(state, 'mirror.json')]) await chown(path, uid, uid)
}

const surroundings = () => ({
  platform: 'linux' as const,
  env: { MIRROR_HOME: join(folder, 'home'), SUDO_UID: String(nobody) },
  homedir: '/root',
  cwd: '/',
})

describe.runIf(process.getuid?.() === 0 && process.platform === 'linux')('root, called by sudo,', () => {
  test('finds the calling user and the home folder', async () => {
    expect(await findInvokingUser(surroundings())).toMatchObject({ uid: nobody, name: 'nobody' })
    for (const SUDO_UID of ['0', '', '-1', '../x', undefined])
      expect(await findInvokingUser({ platform: 'linux', env: { SUDO_UID } })).toBeUndefined()
    expect(await findInvokingUser({ platform: 'linux', env: { DOAS_USER: 'nobody' } })).toMatchObject({ uid: nobody })
  })

  test("finds that user's mirror, and ignores addresses of other machines", async () => {
    await writeStateOf(nobody, await processOf(nobody))
    const found = await findRunningMirror(surroundings())
    expect(found?.user?.name).toBe('nobody')
    expect(found?.running.endpoints).toEqual({
      cache: ['http://127.0.0.1:6055'],
      registry: [],
      admin: ['http://localhost:6056'],
      networks: { kind: 'http://mirror:5055' },
    })
  })

  test("uses only the mirror that the user's MIRROR_HOME names", async () => {
    const env = { HOME: join(folder, 'roots'), SUDO_UID: String(nobody) }
    const roots = { platform: 'linux', env, homedir: join(folder, 'roots'), cwd: '/' }
    const pid = await processOf(0)
    await writeState(mirrorPaths(roots).stateFile, { ...(await stateOf(pid)), endpoints: nowhere })
    expect((await findRunningMirror(roots))?.running.pid).toBe(pid)
    const named = { ...roots, callers: { ...roots, env: { ...env, MIRROR_HOME: join(folder, 'home') } } }
    expect(await findRunningMirror(named)).toBeUndefined()
    const foreignProcess = await processOf(nobody)
    await writeStateOf(nobody, foreignProcess)
    expect((await findRunningMirror(named))?.running.pid).toBe(foreignProcess)
  })

  test("ignores another user's process, another user's file, and an engine of another machine", async () => {
    await writeStateOf(nobody, process.pid)
    expect(await findRunningMirror(surroundings())).toBeUndefined()
    const pid = await processOf(nobody)
    await writeStateOf(1, pid)
    expect(await findRunningMirror(surroundings())).toBeUndefined()
    const container = { id: 'a', name: 'mirror', credentials: [], handedOverAt: '' }
    await writeStateOf(nobody, 0, { runtime: 'container', container: { ...container, elsewhere: { adminPort: 1 } } })
    expect(await findRunningMirror(surroundings())).toBeUndefined()
    const engine = { kind: 'ssh', host: '-oProxyCommand=x' }
    await writeStateOf(nobody, 0, { runtime: 'container', container: { ...container, engine } })
    expect(await findRunningMirror(surroundings())).toBeUndefined()
  })

  test("uses the registries of that user's mirror, unless its configuration is invalid", async () => {
    const served = (upstreams: object) => ({ served: { config: { upstreams }, dataDir: '/data' } })
    const pid = await processOf(nobody)
    await writeStateOf(nobody, pid, served({ 'registry.corp.example': {} }))
    const mirror = await findMirrorAddress(surroundings(), { url: undefined, caFile: undefined })
    expect(mirror.registries).toContain('registry.corp.example')
    expect(mirror.getAddress({ in: 'host' }).cache).toBe('http://127.0.0.1:6055')
    await writeStateOf(nobody, pid, served({ '../../etc': {} }))
    const { registries } = await findMirrorAddress(surroundings(), { url: undefined, caFile: undefined })
    expect(registries.join()).not.toContain('etc')
  })
})
