import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { run } from './support/run.ts'

const { missing } = inject('e2e')

describe.skipIf(missing !== undefined)('a mirror whose log is on a disk of its own', () => {
  test('a mirror answers while the disk of its log is full, and logs afterwards how many lines were lost', async () => {
    const home = await temporaryHome()
    const disk = join(home, 'disk')
    await mkdir(disk)
    await run('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', disk])
    onTestFinished(async () => void (await run('umount', ['--lazy', disk])))
    await mkdir(join(home, 'state'), { mode: 0o700 })
    const log = join(disk, 'log')
    await writeFile(log, '')
    await symlink(log, join(home, 'state', 'mirror.log'))
    const wrapper = ['sh', '-c', `exec "$@" 2>>'${log}'`, 'sh']
    const mirror = await startMirrorProcess({ upstreams: {}, home, wrapper })
    const ask = () => mirror.get('/v2/team/app/blobs/sha256:0', { headers: { 'user-agent': 'x'.repeat(1000) } })
    await writeFile(join(disk, 'ballast'), Buffer.alloc(128 * 1024))
    for (let asked = 0; asked < 1000; asked += 1) expect((await ask()).status).toBe(400)
    expect(await readFile(log, 'utf8')).not.toContain('were lost')
    await rm(join(disk, 'ballast'))
    await ask()
    await expect
      .poll(() => readFile(log, 'utf8'))
      .toMatch(/"lost":\d+,"reason":"ENOSPC","msg":"lines of the log were lost"/)
    mirror.kill('SIGTERM')
    expect(await mirror.ended).toBe(0)
  })
})
