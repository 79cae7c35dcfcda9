import { createServer, type AddressInfo } from 'node:net'
import { describe, expect, test } from 'vitest'
import type { RunCommand } from '../../../src/lib/run-command.ts'
import { findPortHolder } from '../../../src/runtime/port-holder.ts'

const nothing: RunCommand = async () => undefined

describe('who holds a port', () => {
  test.runIf(process.platform === 'linux').each(['127.0.0.1', '::1'])('is found on Linux, on %s', async (host) => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, host, resolve))
    const { port } = server.address() as AddressInfo
    try {
      const holder = await findPortHolder(port, { platform: 'linux', runCommand: nothing })
      expect(holder).toMatchObject({ pid: process.pid, command: expect.stringContaining('node') })
    } finally {
      server.close()
    }
    expect(await findPortHolder(port, { platform: 'linux', runCommand: nothing })).toBeUndefined()
  })

  test('is asked of lsof on macOS', async () => {
    const asked: string[] = []
    const lsof: RunCommand = async (file, args) => {
      asked.push(file, ...args)
      return { exitCode: 0, stdout: 'p123\ncControlCe\nf7\n', stderr: '' }
    }
    const holder = await findPortHolder(5000, { platform: 'darwin', runCommand: lsof })
    expect(holder).toEqual({ pid: 123, command: 'ControlCe' })
    expect(asked).toContain('-iTCP:5000')
  })

  test('is unknown where nobody tells', async () => {
    expect(await findPortHolder(1, { platform: 'darwin', runCommand: nothing })).toBeUndefined()
    expect(await findPortHolder(1, { platform: 'win32', runCommand: nothing })).toBeUndefined()
  })
})
