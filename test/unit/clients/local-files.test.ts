import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { localFiles } from '../../../src/clients/local-files.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-files-'))
})
afterEach(() => rm(folder, { recursive: true }))

describe('what is no regular file', () => {
  test.runIf(process.platform !== 'win32')('is not waited for when it is a pipe', async () => {
    const path = join(folder, 'daemon.json')
    execFileSync('mkfifo', [path])
    await expect(localFiles.read(path)).rejects.toThrow('no regular file')
  })

  test('is not read when it is a folder', async () => {
    const path = join(folder, 'daemon.json')
    await mkdir(path)
    await expect(localFiles.read(path)).rejects.toThrow('no regular file')
  })
})
