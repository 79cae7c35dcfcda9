import { join, sep } from 'node:path'

type Environment = Readonly<Record<string, string | undefined>>

/** How the user calls this program: `mirror`; or by npx, and then his shell may know no `mirror`. */
export function calledAs(env: Environment, { root, name }: { root: string; name: string }): string {
  if (env['npm_command'] !== 'exec' || env['npm_lifecycle_event'] !== 'npx') return 'mirror'
  const project = env['npm_config_local_prefix']
  // A clone, or a project that depends on this package: there npx finds the program by its own name.
  if (project !== undefined && (root === project || root === join(project, 'node_modules', name))) return 'npx mirror'
  // Elsewhere it has fetched the package, and by the program's name would fetch another one.
  return root.includes(`${sep}_npx${sep}`) ? `npx ${name}` : 'mirror'
}

const command =
  /(?<![\w/.-]|\b[Tt]he |\b[Aa] )mirror (?=(?:up|down|status|logs|configure|cache|registry|credentials|init|demo|serve|help|--help)\b)/g

/** Text with its commands as the user calls them. */
export function nameCommands(text: string, name: string): string {
  return name === 'mirror' ? text : text.replaceAll(command, `${name} `)
}
