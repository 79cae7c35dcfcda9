import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { build } from 'esbuild'
import { describe, expect, onTestFinished, test } from 'vitest'
import { interruptGroups, runCommand } from '../../../src/lib/process.ts'

const node = (script: string, options: Parameters<typeof runCommand>[2]) =>
  runCommand(process.execPath, ['-e', script], options)

/** patience allows for a busy machine. */
const patience = { timeout: 20_000 }

describe('runCommand', () => {
  test('passes input and environment, and returns output and exit code unchanged', async () => {
    const script = `process.stdin.pipe(process.stdout); console.error(process.env.GREETING); process.exitCode = 3`
    const result = await node(script, { input: 'in\n', timeoutMs: 10_000, env: { GREETING: 'hello' } })
    expect(result).toEqual({ exitCode: 3, stdout: 'in\n', stderr: 'hello\n' })
  })

  test('gives an empty stdin when there is no input', async () => {
    const result = await node(`process.stdin.resume().on('end', () => console.log('end'))`, { timeoutMs: 10_000 })
    expect(result?.stdout).toBe('end\n')
  })

  test('returns undefined when the program does not exist', async () => {
    expect(await runCommand('mirror-no-such-program', [], { timeoutMs: 1000 })).toBeUndefined()
  })

  test('kills a program after the time-out', async () => {
    const result = await node('setInterval(() => {}, 1000)', { timeoutMs: 200 })
    expect(result?.exitCode).toBeUndefined()
  })

  test('returns the reason when a program cannot be started', async () => {
    const result = await runCommand('/', [], { timeoutMs: 1000 })
    expect(result?.exitCode).toBeUndefined()
    expect(result?.stderr).toContain('EACCES')
  })

  test('limits the output, and ends a program that writes more', async () => {
    const result = await node(`setInterval(() => process.stdout.write('x'.repeat(1 << 20)), 1)`, { timeoutMs: 60_000 })
    expect(result?.exitCode).toBeUndefined()
    expect(result?.stdout.length).toBeLessThanOrEqual(16 * 1024 * 1024)
  })
})

describe.skipIf(process.platform === 'win32')('runCommand with child processes of the program', () => {
  /** Writes a shell script; returns it with a function that reads the process ids it writes. */
  async function script(text: string) {
    const folder = await mkdtemp(join(tmpdir(), 'mirror-run-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    const file = join(folder, 'program')
    await writeFile(file, `#!/bin/sh\ncd ${folder}\n${text}\n`, { mode: 0o755 })
    const pidIn = async (name: string) => Number(await readFile(join(folder, name), 'utf8'))
    return { file, pidIn }
  }

  test('ends a wrapper script together with its children after the time-out', async () => {
    const wrapper = await script('sleep 600 & echo $! > pid; echo waiting; wait')
    const result = await runCommand(wrapper.file, [], { timeoutMs: 500 })
    expect(result).toEqual({ exitCode: undefined, stdout: 'waiting\n', stderr: '' })
    await expect.poll(async () => isRunning(await wrapper.pidIn('pid')), patience).toBe(false)
  })

  test('kills a child that ignores SIGTERM', async () => {
    const wrapper = await script(`trap '' TERM; sh -c "trap '' TERM; while :; do sleep 1; done" & echo $! > pid; wait`)
    const result = await runCommand(wrapper.file, [], { timeoutMs: 500 })
    expect(result?.exitCode).toBeUndefined()
    await expect.poll(async () => isRunning(await wrapper.pidIn('pid')), patience).toBe(false)
  })

  test('does not wait for a daemon that keeps the output open, and leaves it alone', async () => {
    const starter = await script(`sleep 600 & echo $! > pid; echo '{"Username":"u"}'; exit 3`)
    const result = await runCommand(starter.file, [], { timeoutMs: 60_000 })
    expect(result).toEqual({ exitCode: 3, stdout: '{"Username":"u"}\n', stderr: '' })
    const pid = await starter.pidIn('pid')
    expect(await isRunning(pid)).toBe(true)
    process.kill(pid)
  })

  test('returns all output of a program that writes much and ends at once', async () => {
    const result = await node(`process.stdout.write('x'.repeat(4_000_000))`, { timeoutMs: 60_000 })
    expect(result?.stdout).toHaveLength(4_000_000)
  })

  test('does not fail when the program never reads its input', async () => {
    const deaf = await script('exit 0')
    const result = await runCommand(deaf.file, [], { timeoutMs: 60_000, input: 'x'.repeat(1_000_000) })
    expect(result?.exitCode).toBe(0)
  })

  test('forwards an interruption to running programs', async () => {
    const wrapper = await script('echo $$ > pid; exec sleep 600')
    const run = runCommand(wrapper.file, [], { timeoutMs: 600_000 })
    await expect.poll(() => wrapper.pidIn('pid').catch(() => 0), patience).toBeGreaterThan(0)
    interruptGroups()
    expect((await run)?.exitCode).toBeUndefined()
  })

  test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    'ends running programs when this process is ended by %s',
    async (signal) => {
      const wrapper = await script('sleep 600 & echo $! > pid; wait')
      const parent = spawn(process.execPath, [await bundledProgram(), wrapper.file], { stdio: 'inherit' })
      onTestFinished(() => void parent.kill('SIGKILL'))
      await expect.poll(() => wrapper.pidIn('pid').catch(() => 0), patience).toBeGreaterThan(0)
      parent.kill(signal)
      expect(await once(parent, 'exit')).toEqual([null, signal])
      await expect.poll(async () => isRunning(await wrapper.pidIn('pid')), patience).toBe(false)
    },
  )
})

/** Checks that a process runs and is not a zombie, which remains in a system that does not reap orphans. */
async function isRunning(pid: number): Promise<boolean> {
  const { stdout } = await promisify(execFile)('ps', ['-o', 'stat=', '-p', String(pid)]).catch(() => ({ stdout: '' }))
  return stdout.trim() !== '' && !stdout.startsWith('Z')
}

/** Bundles a program that only runs the given program, because older Node versions cannot run TypeScript. */
async function bundledProgram(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-run-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const outfile = join(folder, 'program.mjs')
  const contents = `
    import { runCommand } from './process.ts'
    await runCommand(process.argv[2], [], { timeoutMs: 600_000 })`
  await build({
    stdin: { contents, resolveDir: fileURLToPath(new URL('../../../src/lib', import.meta.url)), loader: 'ts' },
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    banner: { js: "const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);" },
  })
  return outfile
}
