import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { findPackageRoot } from '../../../src/lib/fs.ts'
import type { RunCommand } from '../../../src/lib/process.ts'
import { findPortHolder } from '../../../src/daemon/start-errors.ts'

const nothing: RunCommand = async () => undefined

describe('the holder of a port', () => {
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

  test.runIf(process.platform === 'linux')('is known for a mirror, with its MIRROR_HOME', async () => {
    const root = await mkdtemp(join(tmpdir(), 'mirror-holder-'))
    onTestFinished(() => rm(root, { recursive: true }))
    await mkdir(join(root, 'bin'))
    const { name } = JSON.parse(await readFile(join(findPackageRoot(), 'package.json'), 'utf8'))
    await writeFile(join(root, 'package.json'), JSON.stringify({ name }))
    const script = `const server = require('node:net').createServer().listen(0, '127.0.0.1', () => console.log(server.address().port))`
    await writeFile(join(root, 'bin', 'run.cjs'), script)
    const holderOf = async (env: Record<string, string>, ...args: string[]) => {
      const child = spawn(process.execPath, ['--max-semi-space-size=8', join(root, 'bin', 'run.cjs'), ...args], { env })
      onTestFinished(() => void child.kill('SIGKILL'))
      const [port] = await once(child.stdout, 'data')
      return findPortHolder(Number(port), { platform: 'linux', runCommand: nothing })
    }
    expect(await holderOf({ MIRROR_HOME: '/some/home' }, 'serve')).toMatchObject({ mirror: { home: '/some/home' } })
    expect(await holderOf({}, 'serve')).toMatchObject({ mirror: 'usual' })
    expect(await holderOf({}, 'other')).not.toHaveProperty('mirror')
  })

  test('is found by lsof on macOS', async () => {
    const asked: string[] = []
    const lsof: RunCommand = async (file, args) => {
      asked.push(file, ...args)
      return { exitCode: 0, stdout: 'p123\ncControlCe\nf7\n', stderr: '' }
    }
    const holder = await findPortHolder(5000, { platform: 'darwin', runCommand: lsof })
    expect(holder).toEqual({ pid: 123, command: 'ControlCe' })
    expect(asked).toContain('-iTCP:5000')
  })

  test('is undefined where the system does not tell', async () => {
    expect(await findPortHolder(1, { platform: 'darwin', runCommand: nothing })).toBeUndefined()
    expect(await findPortHolder(1, { platform: 'win32', runCommand: nothing })).toBeUndefined()
  })
})
