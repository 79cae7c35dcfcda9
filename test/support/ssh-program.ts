import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

export interface SshProgram {
  /** Where it is found. */
  folder: string
  /** The arguments of each time it was run. */
  runs(): Promise<string[][]>
}

/** A program named ssh which, instead of going anywhere, joins its stdin and stdout with a socket of this machine. */
export async function makeSshProgram(socket: string): Promise<SshProgram> {
  return makeProgram(
    `const connection = require('node:net').connect(${JSON.stringify(socket)})
process.stdin.pipe(connection).pipe(process.stdout)
connection.on('error', (error) => { console.error(error.message); process.exit(1) })`,
  )
}

/** One that cannot log in. */
export async function makeFailingSshProgram(words: string, code: number): Promise<SshProgram> {
  return makeProgram(`console.error(${JSON.stringify(words)}); process.exitCode = ${code}`)
}

/** One that goes through another program, as with a ProxyCommand, which takes no notice of the end of its input. */
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
