/** What is to be started with the machine or the user's session. */
export interface AutostartSpec {
  /** The program and its arguments; the program absolute. */
  command: readonly string[]
  env: Readonly<Record<string, string>>
  logFile: string
}

/** A systemd unit from its template. Quoting: systemd.syntax(7), systemd.service(5) "Command lines". */
export function renderSystemdUnit(template: string, { command, env, logFile }: AutostartSpec): string {
  // `%` starts a specifier everywhere; `$` a variable in a command line only.
  const quoted = (text: string) =>
    `"${percents(text).replaceAll(/["\\]/g, '\\$&').replaceAll('\n', '\\n').replaceAll('\t', '\\t')}"`
  return fill(template, {
    COMMAND: command.map((part) => quoted(part).replaceAll('$', '$$$$')).join(' '),
    ENVIRONMENT: Object.entries(env)
      .map(([name, value]) => `Environment=${quoted(`${name}=${value}`)}`)
      .join('\n'),
    LOG: percents(logFile),
  })
}

/** A launchd agent from its template. launchd.plist(5). */
export function renderLaunchAgent(template: string, { command, env, logFile }: AutostartSpec): string {
  return fill(template, {
    COMMAND: command.map((part) => `    <string>${xml(part)}</string>`).join('\n'),
    ENVIRONMENT: Object.entries(env)
      .map(([name, value]) => `    <key>${xml(name)}</key>\n    <string>${xml(value)}</string>`)
      .join('\n'),
    LOG: xml(logFile),
  })
}

function fill(template: string, values: Record<string, string>): string {
  return template.replaceAll(/@([A-Z]+)@/g, (placeholder, name: string) => values[name] ?? placeholder)
}

function percents(text: string): string {
  return text.replaceAll('%', '%%')
}

const xmlEntities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }

function xml(text: string): string {
  return text.replaceAll(/[&<>"]/g, (character) => xmlEntities[character]!)
}
