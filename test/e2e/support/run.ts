import { spawn } from 'node:child_process'

export interface RunOptions {
  env?: NodeJS.ProcessEnv
  cwd?: string
  /** Bytes for its stdin. */
  input?: Uint8Array
  /** ms, 60 s when not given; then it is killed. */
  timeoutMs?: number
}

/** Runs a program to its end and returns its stdout; any other end than exit code 0 is an Error with what it said. */
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
  // A program that ends without reading all of its input tells why by its exit code.
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
