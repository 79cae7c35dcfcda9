import { execFileSync } from 'node:child_process'
import { closeSync, constants, openSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { getErrno } from '../../src/lib/errors.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'

/** Starts a mirror whose stderr is a named pipe; returns the other end too. */
async function startWithPipe() {
  const home = await temporaryHome()
  const pipe = join(home, 'stderr')
  execFileSync('mkfifo', [pipe])
  // Opens the pipe without blocking, because a read of an empty pipe would stop the test.
  const reader = openSync(pipe, constants.O_RDWR | constants.O_NONBLOCK)
  let isOpen = true
  const close = () => {
    if (isOpen) closeSync(reader)
    isOpen = false
  }
  onTestFinished(close)
  const wrapper = ['sh', '-c', `exec "$@" 2>'${pipe}'`, 'sh']
  const mirror = await startMirrorProcess({ upstreams: {}, home, wrapper })
  // Requests a long path, because the log line contains it.
  const ask = () => mirror.get(`/v2/team/app/blobs/sha256:${'0'.repeat(2000)}`)
  return { mirror, ask, reader, close }
}

describe.skipIf(process.platform === 'win32')('a mirror that logs to a pipe', () => {
  test('answers while the pipe has no reader, and reports the number of lost lines once it has one', async () => {
    const { mirror, ask, reader } = await startWithPipe()
    // Sends more than fits: a pipe holds 64 KiB, and 1 MiB waits in the process.
    for (let round = 0; round < 40; round += 1) {
      const answers = await Promise.all(Array.from({ length: 40 }, ask))
      expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([400]))
    }
    const buffer = Buffer.alloc(64 * 1024)
    let text = ''
    const read = async () => {
      await ask()
      try {
        text += buffer.toString('utf8', 0, readSync(reader, buffer))
      } catch (error) {
        if (getErrno(error) !== 'EAGAIN') throw error
      }
      return text
    }
    await expect.poll(read, { timeout: 30_000 }).toContain('lines of the log were lost')
    mirror.kill('SIGTERM')
    expect(await mirror.ended).toBe(0)
  })

  test('answers after the reader has closed the pipe', async () => {
    const { mirror, ask, close } = await startWithPipe()
    close()
    for (let round = 0; round < 20; round += 1) expect((await ask()).status).toBe(400)
    mirror.kill('SIGTERM')
    expect(await mirror.ended).toBe(0)
  })
})
