import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { onTestFinished } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { commandEnv } from './command-env.ts'
import { runInTerminal } from './terminal.ts'

const run = promisify(execFile)

/** A machine with the program in PATH, and with names that the completion finds. */
export interface CompletionMachine {
  readonly home: string
  readonly env: Record<string, string>
}

/** Prepares a home folder whose mirror has answered with these names, and is stopped now. */
export async function prepareCompletion(names: { cached?: string[]; pushed?: string[] }): Promise<CompletionMachine> {
  const home = await mkdtemp(join(tmpdir(), 'mirror-completion-'))
  onTestFinished(() => rm(home, { recursive: true, force: true }))
  const programs = join(home, 'bin')
  await mkdir(programs)
  await symlink(join(findPackageRoot(), 'bin', 'run.js'), join(programs, 'mirror'))
  await mkdir(join(home, 'state'), { mode: 0o700 })
  await writeFile(join(home, 'state', 'completion.json'), JSON.stringify(names))
  const env = commandEnv(home)
  return { home, env: { ...env, PATH: `${programs}:${env['PATH']}` } }
}

/** Makes the shell print the words of the command instead of running it; the completion runs the program. */
const recorder = `mirror() { if [ "$1" = __complete ]; then command mirror "$@"; else printf 'WORD<%s>\\n' "$@"; fi; }`

const shellCommands = {
  bash: { command: ['bash', '--noprofile', '--norc', '-i'], load: 'eval "$(command mirror completion bash)"' },
  zsh: {
    command: ['zsh', '-f', '-i'],
    load: 'autoload -Uz compinit && compinit -u -D && source <(command mirror completion zsh)',
  },
} as const

/** Types a line in a real shell, with a tab where it has one, presses enter, and returns the words that the command got. */
export async function typeInShell(
  shell: keyof typeof shellCommands,
  { home, env }: CompletionMachine,
  line: string,
): Promise<string[]> {
  const { command, load } = shellCommands[shell]
  const { text } = await runInTerminal(command, {
    columns: 200,
    cwd: home,
    env: { ...env, PS1: 'READY>', ZDOTDIR: home, INPUTRC: '/dev/null' },
    answers: [
      ['READY>', `${recorder}; ${load}; echo LOADED''NOW\r`],
      ['LOADEDNOW', `${line}\r`],
      ['WORD<', 'exit\r'],
    ],
  })
  return [...text.matchAll(/^WORD<(.*)>$/gm)].map(([, word]) => word!)
}

/** Returns the candidates that a real fish shows for a line. */
export async function completeInFish({ home, env }: CompletionMachine, line: string): Promise<string[]> {
  const script = 'mirror completion fish | source; complete -C "$LINE"'
  const { stdout } = await run('fish', ['--no-config', '-c', script], { cwd: home, env: { ...env, LINE: line } })
  return stdout.split('\n').filter((text) => text !== '')
}
