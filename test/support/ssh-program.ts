import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

export interface SshProgram {
  /** The folder of the program, for PATH. */
  folder: string
  /** Reads the arguments of each run. */
  runs(): Promise<string[][]>
}

/** Creates a program named ssh that connects its stdin and stdout to a socket of this machine. */
export async function makeSshProgram(socket: string): Promise<SshProgram> {
  return makeProgram(
    `const connection = require('node:net').connect(${JSON.stringify(socket)})
process.stdin.pipe(connection).pipe(process.stdout)
connection.on('error', (error) => { console.error(error.message); process.exit(1) })`,
  )
}

/** Creates a program named ssh that fails with these words and this exit code. */
export async function makeFailingSshProgram(words: string, code: number): Promise<SshProgram> {
  return makeProgram(`console.error(${JSON.stringify(words)}); process.exitCode = ${code}`)
}

/** Creates a program named ssh that starts another one, as with a ProxyCommand, and ignores the end of its input. */
export async function makeProxiedSshProgram(): Promise<SshProgram & { proxyPid(): Promise<number> }> {
  const program = await makeProgram(
    `const { pid } = require('node:child_process').spawn('sleep', ['600'], { stdio: 'ignore' })
require('node:fs').writeFileSync(__dirname + '/proxy', String(pid))
setInterval(() => {}, 1000)`,
  )
  return { ...program, proxyPid: async () => Number(await readFile(join(program.folder, 'proxy'), 'utf8')) }
}

async function makeProgram(script: string): Promise<SshProgram> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-ssh-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const log = join(folder, 'runs')
  const note = `require('node:fs').appendFileSync(${JSON.stringify(log)}, JSON.stringify(process.argv.slice(2)) + '\\n')`
  await writeFile(join(folder, 'ssh'), `#!${process.execPath}\n${note}\n${script}\n`, { mode: 0o755 })
  return {
    folder,
    runs: async () =>
      (await readFile(log, 'utf8'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as string[]),
  }
}
