import { MirrorError } from '../../lib/errors.ts'
import { hubAliases, isLoopbackUrl } from '../address.ts'
import { asStrings, asTable, readToml, type TomlTable } from '../edit/toml.ts'
import { isWrittenByMirror } from '../files/kinds.ts'
import type { FilesSnapshot, Finding } from '../types.ts'

/** Finds the known faults of a buildkitd.toml. https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md */
export function inspectBuildkit(cache: string | undefined, path: string, files: FilesSnapshot): readonly Finding[] {
  const text = files.getText(path)
  if (text === undefined) return []
  const mend = (advice: string): Finding['mend'] => (isWrittenByMirror(text) ? 'configure' : { advice })
  let root: TomlTable
  try {
    root = readToml(path, text)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const saw = error.message.replace(', so it is left alone', '')
    return [{ fault: 'buildkit.syntax', state: 'fail', where: path, saw, mend: mend(`Correct ${path}.`) }]
  }
  const tables = asTable(root['registry']) ?? {}
  const findings: Finding[] = []
  for (const [registry, value] of Object.entries(tables)) {
    const table = asTable(value) ?? {}
    const mirrors = asStrings(table['mirrors'])
    if (table['mirrors'] !== undefined && !Array.isArray(table['mirrors']))
      findings.push({
        fault: 'buildkit.syntax',
        state: 'fail',
        where: path,
        saw: `${path} has mirrors of ${registry} that are no list, so buildkitd does not start.`,
        mend: mend(`Write mirrors = ["HOST:PORT"] for ${registry} in ${path}.`),
      })
    if (hubAliases.has(registry) && mirrors.length > 0)
      findings.push({
        fault: 'buildkit.hub',
        state: 'warn',
        where: path,
        saw: `${path} has mirrors for ${registry}, which BuildKit never looks up: its name for Docker Hub is docker.io.`,
        mend: mend(`Write [registry."docker.io"] instead of [registry.${JSON.stringify(registry)}] in ${path}.`),
      })
    const withScheme = mirrors.find((one) => one.includes('://'))
    if (withScheme !== undefined)
      findings.push({
        fault: 'buildkit.scheme',
        state: 'fail',
        where: path,
        saw: `${path} has the mirror ${withScheme} with a scheme, which BuildKit drops.`,
        mend: mend(`Write the mirror without its scheme in ${path}, and set http in [registry."HOST:PORT"].`),
      })
    const [mirror] = mirrors
    // BuildKit takes the scheme from the table of the mirror's host, not from that of the registry.
    const host = mirror?.replace(/^.*:\/\//, '').split('/', 1)[0]
    const isMisplaced =
      table['http'] === true && host !== undefined && registry !== host && asTable(tables[host])?.['http'] !== true
    const needsTable = cache?.startsWith('http:') === true && !isLoopbackUrl(cache) && host === new URL(cache).host
    if (needsTable && !isMisplaced && asTable(tables[host])?.['http'] !== true)
      findings.push({
        fault: 'buildkit.http',
        state: 'fail',
        where: path,
        saw: `${path} has no http = true for the mirror ${host}, so BuildKit contacts it by HTTPS.`,
        mend: mend(`Write http = true in the table [registry.${JSON.stringify(host)}] of ${path}.`),
      })
    if (isMisplaced)
      findings.push({
        fault: 'buildkit.http',
        state: 'fail',
        where: path,
        saw: `${path} has http = true for ${registry}, which concerns ${registry} itself and not its mirror ${mirror}.`,
        mend: mend(`Write http = true in the table [registry.${JSON.stringify(host)}] of ${path}.`),
      })
  }
  return findings
}
