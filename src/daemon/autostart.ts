import { readFile, rm } from 'node:fs/promises'
import { posix } from 'node:path'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import type { RunCommand } from '../lib/process.ts'
import { type AutostartSpec, renderLaunchAgent, renderSystemdUnit } from '../runtime/autostart-file.ts'

/** Makes a mirror come back after a reboot. */
export interface Autostart {
  /** The file that does it. */
  readonly file: string
  /** Throws a MirrorError (exit 4) when this machine has nothing that could. */
  check(): Promise<void>
  /** What the user has yet to do for it, one step a line. */
  install(spec: AutostartSpec): Promise<string[]>
  /** Whether there was anything to remove. */
  remove(): Promise<boolean>
}

export interface AutostartOptions {
  platform: string
  env: Readonly<Record<string, string | undefined>>
  homedir: string
  /** The folder of the package's templates. */
  templates: string
  runCommand: RunCommand
}

const timeoutMs = 15_000

/** The way of this platform: a systemd user unit, or a launchd agent. */
export function createAutostart(options: AutostartOptions): Autostart {
  if (options.platform === 'linux') return systemd(options)
  if (options.platform === 'darwin') return launchd(options)
  throw new MirrorError('Starting with the machine is supported on Linux (systemd) and macOS (launchd) only.', {
    exit: exitCode.missing,
    hints: ['mirror up   (after each start of the machine)'],
  })
}

function systemd({ env, homedir, templates, runCommand }: AutostartOptions): Autostart {
  const config = env['XDG_CONFIG_HOME']
  const unit = 'mirror.service'
  const file = posix.join(
    config && posix.isAbsolute(config) ? config : posix.join(homedir, '.config'),
    'systemd/user',
    unit,
  )
  const systemctl = (...args: string[]) => runCommand('systemctl', ['--user', ...args], { timeoutMs })

  async function mustSucceed(...args: string[]): Promise<void> {
    const result = await systemctl(...args)
    if (result?.exitCode === 0) return
    throw new MirrorError(
      `systemctl --user ${args.join(' ')} failed: ${result?.stderr.trim() || 'it is not installed'}.`,
      {
        exit: exitCode.missing,
      },
    )
  }

  return {
    file,
    async check() {
      const session = await systemctl('show-environment')
      if (session?.exitCode === 0) return
      const why = session === undefined ? 'systemctl is not installed' : 'there is no systemd user session here'
      throw new MirrorError(`The mirror cannot be started with the machine: ${why}.`, {
        exit: exitCode.missing,
        hints: [
          'mirror up   (without --autostart: until the machine is switched off)',
          'mirror serve   (what any other supervisor would run)',
        ],
      })
    },
    async install(spec) {
      const template = await readFile(posix.join(templates, 'systemd', unit), 'utf8')
      await writeFileAtomic(file, renderSystemdUnit(template, spec))
      await mustSucceed('daemon-reload')
      await mustSucceed('enable', unit)
      // Without lingering a user's units wait for the first login.
      const lingers = await runCommand('loginctl', ['enable-linger'], { timeoutMs })
      return lingers?.exitCode === 0 ? [] : ['sudo loginctl enable-linger "$USER"   (to start before you log in)']
    },
    async remove() {
      if (!(await exists(file))) return false
      // Without a session there is nothing to tell; the file is what counts.
      const disabled = await systemctl('disable', unit)
      await rm(posix.join(posix.dirname(file), 'default.target.wants', unit), { force: true })
      await rm(file, { force: true })
      if (disabled?.exitCode === 0) await systemctl('daemon-reload')
      return true
    },
  }
}

/** Agents in this folder are started at login; nothing has to be told to launchd before. */
function launchd({ homedir, templates }: AutostartOptions): Autostart {
  const name = 'dev-mirror.plist'
  const file = posix.join(homedir, 'Library/LaunchAgents', name)
  return {
    file,
    async check() {},
    async install(spec) {
      const template = await readFile(posix.join(templates, 'launchd', name), 'utf8')
      await writeFileAtomic(file, renderLaunchAgent(template, spec))
      return []
    },
    async remove() {
      if (!(await exists(file))) return false
      await rm(file, { force: true })
      return true
    },
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await readFile(path)
    return true
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false
    throw error
  }
}
