import { spawn } from 'node:child_process'

export interface RunOptions {
  env?: NodeJS.ProcessEnv
  cwd?: string
  /** The bytes of its stdin. */
  input?: Uint8Array
  /** The time until the program is killed, ms; default: 60 s. */
  timeoutMs?: number
}

/** Runs a program to its end and returns its stdout; throws its output unless the exit code is 0. */
export async function run(file: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const child = spawn(file, args, {
    stdio: 'pipe',
    timeout: options.timeoutMs ?? 60_000,
    killSignal: 'SIGKILL',
    ...(options.env && { env: options.env }),
    ...(options.cwd !== undefined && { cwd: options.cwd }),
  })
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk))
  // Ignores EPIPE: the exit code tells why a program ended before it read all of its input.
  child.stdin.on('error', () => {})
  child.stdin.end(options.input)
  const end = await new Promise<string>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve(signal ?? `exit code ${code}`))
  })
  const said = Buffer.concat(stdout).toString()
  if (end === 'exit code 0') return said
  throw new Error(`${[file, ...args].join(' ')}: ${end}\n${Buffer.concat(stderr).toString()}${said}`)
}
