import { spawn, spawnSync } from 'node:child_process'

export interface TerminalOptions {
  /** Width of the terminal. */
  readonly columns: number
  readonly env: Readonly<Record<string, string | undefined>>
  readonly cwd?: string
  /** Keys to type, each when the screen shows its question. */
  readonly answers?: readonly (readonly [question: string, keys: string])[]
}

export interface Screen {
  readonly exit: number | null
  /** The whole output with its control sequences; lines end with `\n`. */
  readonly raw: string
  /** The same output without control sequences. */
  readonly text: string
}

/**
 * Returns the reason when no program can run in a terminal here; undefined when one can. Throws in CI instead, because failures
 * that only a terminal shows must be found there.
 */
export function whyNoTerminal(): string | undefined {
  const { stdout } = spawnSync('script', ['--version'], { encoding: 'utf8' })
  if (stdout?.includes('util-linux')) return undefined
  const reason = 'these need `script` of util-linux (Debian: bsdutils), to run programs in a pseudo terminal'
  if (process.env['CI']) throw new Error(reason)
  return reason
}

/** Runs a program in a pseudo terminal, which is its stdin, stdout and stderr. */
export async function runInTerminal(command: readonly string[], options: TerminalOptions): Promise<Screen> {
  const line = `stty cols ${options.columns} rows 50 && exec ${command.map(quoted).join(' ')}`
  const env = { TERM: 'xterm-256color', SHELL: '/bin/sh', ...options.env }
  const child = spawn('script', ['--quiet', '--return', '--command', line, '/dev/null'], {
    env,
    stdio: 'pipe',
    // Kill a program that waits for an answer which the test does not give.
    timeout: 50_000,
    killSignal: 'SIGKILL',
    ...(options.cwd !== undefined && { cwd: options.cwd }),
  })
  let raw = ''
  let seen = 0
  const answers = [...(options.answers ?? [])]
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    raw += chunk
    const [next] = answers
    if (next === undefined) return
    const at = plain(raw).indexOf(next[0], seen)
    if (at === -1) return
    seen = at + next[0].length
    answers.shift()
    child.stdin.write(next[1])
  })
  const exit = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  raw = raw.replaceAll('\r\n', '\n')
  return { exit, raw, text: plain(raw) }
}

function plain(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replaceAll(/\x1b\[[\d;?]*[A-Za-z]/g, '')
}

function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}
