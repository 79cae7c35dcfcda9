import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { onTestFinished } from 'vitest'
import type { ClientOptions, Machine } from '../../../src/clients/types.ts'
import type { CommandResult } from '../../../src/lib/process.ts'

export const nothingSaid: ClientOptions = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

/** Output of programs, by the beginning of the command line. */
export type Answers = Record<string, string | CommandResult>

/** Creates a machine with these programs and files; it records each command in `asked`. */
export async function machineWith(answers: Answers, files: Record<string, string> = {}, more: Partial<Machine> = {}) {
  const home = await mkdtemp(join(tmpdir(), 'mirror-podman-'))
  onTestFinished(() => rm(home, { recursive: true, force: true }))
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(home, path)), { recursive: true })
    await writeFile(join(home, path), text)
  }
  const asked: { line: string; input: string | undefined }[] = []
  const machine: Machine = {
    platform: 'linux',
    env: {},
    home,
    root: '/',
    detached: false,
    cwd: home,
    stateDir: join(home, 'state'),
    async runCommand(file, args, { input }) {
      const line = [file, ...args].join(' ')
      asked.push({ line, input })
      const answer = Object.entries(answers).find(([start]) => line.startsWith(start))?.[1]
      return typeof answer === 'string' ? { exitCode: 0, stdout: answer, stderr: '' } : answer
    },
    ...more,
  }
  return { machine, asked, home }
}

export const fails = (stderr: string): CommandResult => ({ exitCode: 125, stdout: '', stderr })
