/** The flags of dockerd that matter to whoever edits its files. */
const withValue: ReadonlySet<string> = new Set(['config-file', 'insecure-registry', 'registry-mirror'])

/** The values of those flags in a command line, by name without dashes; a flag that was not given has no key. */
export function dockerdFlags(args: readonly string[]): Readonly<Record<string, readonly string[]>> {
  const flags: Record<string, string[]> = {}
  for (const [at, arg] of args.entries()) {
    const [, name = '', , value] = /^--([a-z-]+)(=(.*))?$/s.exec(arg) ?? []
    if (!withValue.has(name)) continue
    const given = value ?? args[at + 1]
    if (given !== undefined) (flags[name] ??= []).push(given)
  }
  return flags
}
