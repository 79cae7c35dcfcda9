import { chmod, chown, mkdir, mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { createTemporaryFolder } from '../../../src/lib/fs.ts'

const nobody = 65_534

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-temporary-'))
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await rm(folder, { recursive: true })
})

async function made(): Promise<string> {
  const path = await createTemporaryFolder('mirror-made-')
  onTestFinished(() => rm(path, { recursive: true, force: true }))
  return path
}

describe.skipIf(process.platform === 'win32')('a temporary folder', () => {
  test('has mode 0700 and a new name each time, and lies in TMPDIR', async () => {
    vi.stubEnv('TMPDIR', folder)
    const [one, other] = [await made(), await made()]
    expect(one).not.toBe(other)
    expect(dirname(one)).toBe(folder)
    expect((await stat(one)).mode & 0o777).toBe(0o700)
  })

  test('lies in a world-writable folder only when that one is sticky', async () => {
    vi.stubEnv('TMPDIR', folder)
    await chmod(folder, 0o1777)
    expect(dirname(await made())).toBe(folder)
    await chmod(folder, 0o777)
    expect(dirname(await made())).toBe('/tmp')
    await chmod(folder, 0o700)
  })

  test.runIf(process.getuid?.() === 0)('does not lie in a folder of another user as root under `sudo -E`', async () => {
    const theirs = join(folder, 'theirs')
    await mkdir(theirs)
    await chown(theirs, nobody, nobody)
    vi.stubEnv('TMPDIR', theirs)
    expect(dirname(await made())).toBe('/tmp')
    await mkdir(join(theirs, 'roots'))
    vi.stubEnv('TMPDIR', join(theirs, 'roots'))
    expect(dirname(await made())).toBe('/tmp')
  })
})
