import { describe, expect, test } from 'vitest'
import { runCommand } from '../../../src/lib/run-command.ts'

const node = (script: string, options: Parameters<typeof runCommand>[2]) =>
  runCommand(process.execPath, ['-e', script], options)

describe('runCommand', () => {
  test('passes input and environment, and returns output and exit code as they are', async () => {
    const script = `process.stdin.pipe(process.stdout); console.error(process.env.GREETING); process.exitCode = 3`
    const result = await node(script, { input: 'in\n', timeoutMs: 10_000, env: { GREETING: 'hello' } })
    expect(result).toEqual({ exitCode: 3, stdout: 'in\n', stderr: 'hello\n' })
  })

  test('gives an empty stdin when there is no input', async () => {
    const result = await node(`process.stdin.resume().on('end', () => console.log('end'))`, { timeoutMs: 10_000 })
    expect(result?.stdout).toBe('end\n')
  })

  test('tells a program that is not there by undefined', async () => {
    expect(await runCommand('mirror-no-such-program', [], { timeoutMs: 1000 })).toBeUndefined()
  })

  test('kills what takes too long', async () => {
    const result = await node('setInterval(() => {}, 1000)', { timeoutMs: 200 })
    expect(result?.exitCode).toBeUndefined()
  })

  test('says why a program could not be started', async () => {
    const result = await runCommand('/', [], { timeoutMs: 1000 })
    expect(result?.exitCode).toBeUndefined()
    expect(result?.stderr).toContain('EACCES')
  })
})
