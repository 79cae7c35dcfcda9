import { MirrorError } from '../../lib/errors.ts'
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
    const withScheme = mirrors.find((one) => one.includes('://'))
    if (withScheme !== undefined)
      findings.push({
        fault: 'buildkit.scheme',
        state: 'fail',
        where: path,
        saw: `${path} has the mirror ${withScheme} with a scheme, which BuildKit drops.`,
        mend: mend(`Write the mirror without its scheme in ${path}, and set http in [registry."HOST:PORT"].`),
      })
    const host = cache === undefined ? undefined : new URL(cache).host
    const isMisplaced = table['http'] === true && mirrors.length > 0 && registry !== host
    if (isMisplaced)
      findings.push({
        fault: 'buildkit.http',
        state: 'fail',
        where: path,
        saw: `${path} has http = true for ${registry}, which concerns ${registry} itself and not its mirror ${mirrors[0]}.`,
        mend: mend(`Move http = true to the table [registry.${JSON.stringify(mirrors[0])}] in ${path}.`),
      })
  }
  return findings
}
