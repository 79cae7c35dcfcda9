import { chmod, mkdir, readdir, rm, rmdir, writeFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import { run } from './run.ts'

const program = fileURLToPath(new URL('../../../bin/run.js', import.meta.url))
const records = '/var/lib/mirror'
const settings = { env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }, timeoutMs: 240_000 }
const apt = ['-qq', '--yes', '-o', 'DPkg::Lock::Timeout=120', '-o', 'Dpkg::Use-Pty=0']

export interface Said {
  exit: number | null
  stdout: string
  stderr: string
}

/** SudoUser is an ordinary user who may become root by sudo. */
export interface SudoUser {
  readonly name: string
  readonly home: string
  /** The shell words that call mirror, before its arguments. */
  readonly program: string
  mirror(...args: string[]): Promise<Said>
  /** Runs a line of shell, as the user types it. */
  shell(line: string): Promise<Said>
}

/** Installs Debian's sudo. Returns the function that removes it, unless it was there before. */
export async function installSudo(): Promise<() => Promise<void>> {
  if (existsSync('/usr/bin/sudo')) return async () => {}
  await run('apt-get', [...apt, '--no-install-recommends', 'install', 'sudo'], settings)
  return async () => {
    // Forces the removal, which Debian refuses on machines where root has no password.
    await run('apt-get', [...apt, 'purge', 'sudo'], { ...settings, env: { ...settings.env, SUDO_FORCE_REMOVE: 'yes' } })
  }
}

/**
 * Creates a user in group docker in the separate /etc to which `enter` leads. Root's records about the machine go to a folder
 * that is empty at the start, and removed at the end.
 */
export async function addSudoUser(
  folder: string,
  enter: (command: readonly string[]) => string[],
  env: NodeJS.ProcessEnv = {},
): Promise<SudoUser> {
  const name = 'alice'
  const home = join(folder, name)
  // Lets other users reach the socket and the home folder in it.
  await chmod(folder, 0o755)
  await mkdir(home)
  const isNew = !existsSync(records)
  await mkdir(records, { recursive: true })
  onTestFinished(async () => {
    if (isNew && (await readdir(records)).length === 0) await rmdir(records)
  })
  const inside = async (...command: string[]) => {
    const [file, ...args] = enter(command)
    await run(file!, args)
  }
  await inside('mount', '-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', records)
  await inside('useradd', '--home-dir', home, '--groups', 'docker', '--shell', '/bin/sh', name)
  await inside('chown', `${name}:`, home)
  const rule = join(folder, 'sudoers')
  await writeFile(rule, `${name} ALL=(ALL) NOPASSWD: ALL\n`)
  await inside('install', '-m', '440', rule, '/etc/sudoers.d/mirror-e2e')
  await rm(rule)

  const shell = async (line: string): Promise<Said> => {
    const own = { PATH: '/usr/local/bin:/usr/bin:/bin', HOME: home, USER: name, ...env }
    const words = Object.entries(own).map(([key, value]) => `${key}=${value}`)
    const [file, ...args] = enter(['runuser', '-u', name, '--', 'env', '-i', ...words, 'sh', '-c', `cd; ${line}`])
    const child = spawn(file!, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 120_000 })
    const said: Said = { exit: null, stdout: '', stderr: '' }
    child.stdout.setEncoding('utf8').on('data', (text: string) => (said.stdout += text))
    child.stderr.setEncoding('utf8').on('data', (text: string) => (said.stderr += text))
    const [exit] = (await once(child, 'close')) as [number | null]
    return { ...said, exit }
  }
  const called = `${process.execPath} ${program}`
  return { name, home, program: called, shell, mirror: (...args) => shell([called, ...args].join(' ')) }
}

/** Returns the sudo command that a message recommends. */
export function sudoLine({ stderr }: Said): string {
  const line = stderr.split('\n').find((one) => one.trim().startsWith('sudo '))
  if (line === undefined) throw new Error(`No sudo command in: ${stderr}`)
  return line.trim().replace(/ {3}\(.*\)$/, '')
}
