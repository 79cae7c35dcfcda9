import { basename, dirname, join, sep } from 'node:path'

/** How the user calls this program. */
export interface ProgramName {
  /** `mirror`; or by npx, and then his shell may know no `mirror`. */
  readonly name: string
  /** What makes it root's command: sudo, which looks for programs in the folders of the system only. */
  readonly sudo: string
}

export interface RunningProcess {
  readonly env: Readonly<Record<string, string | undefined>>
  /** Of Node, and of the program as the shell found it. */
  readonly argv: readonly string[]
}

/** `root`, `name`: of the package. */
export function calledAs({ env, argv }: RunningProcess, { root, name }: { root: string; name: string }): ProgramName {
  return { name: nameOf(env, root, name), sudo: sudoFor(env, argv[1] ?? '') }
}

function nameOf(env: RunningProcess['env'], root: string, name: string): string {
  if (!isByNpx(env)) return 'mirror'
  const project = env['npm_config_local_prefix']
  // A clone, or a project that depends on this package: there npx finds the program by its own name.
  if (project !== undefined && (root === project || root === join(project, 'node_modules', name))) return 'npx mirror'
  // Elsewhere it has fetched the package, and by the program's name would fetch another one.
  return root.includes(`${sep}_npx${sep}`) ? `npx ${name}` : 'mirror'
}

function isByNpx(env: RunningProcess['env']): boolean {
  return env['npm_command'] === 'exec' && env['npm_lifecycle_event'] === 'npx'
}

// `secure_path` of sudo, as distributions set it.
const systemFolders = ['sbin', 'bin'].flatMap((folder) => [`/usr/local/${folder}`, `/usr/${folder}`, `/${folder}`])

function sudoFor(env: RunningProcess['env'], program: string): string {
  // Installed for this user (by nvm, or with a prefix in his home); a path to run.js names itself.
  const isOwn = basename(program) === 'mirror' && !systemFolders.includes(dirname(program))
  return isOwn || isByNpx(env) ? 'sudo env "PATH=$PATH"' : 'sudo'
}

const commands = 'up|down|status|logs|configure|cache|registry|credentials|init|demo|serve|help|--help'
const command = new RegExp(`(?<![\\w/.-]|\\b[Tt]he |\\b[Aa] )(sudo )?mirror (?=(?:${commands})\\b)`, 'g')

/** Text with its commands as the user calls them. */
export function nameCommands(text: string, { name, sudo }: ProgramName): string {
  if (name === 'mirror' && sudo === 'sudo') return text
  return text.replaceAll(command, (_, elevated: string | undefined) =>
    elevated === undefined ? `${name} ` : `${sudo} ${name} `,
  )
}
