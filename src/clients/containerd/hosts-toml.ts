import { originOf } from '../../oci/reference.ts'
import { caFileName } from '../ca-file.ts'
import { joinSections, sectionPath, type TomlSection, tomlSections } from '../edit/toml.ts'
import { renderToml, tableOf, type TomlTable, tryToml } from '../read-toml.ts'
import { writtenByMirror } from '../written-by-mirror.ts'

export interface HostsFile {
  /** The registry's own address, which is asked last; undefined leaves it to the client. */
  readonly server?: string
  readonly mirror: string
  /**
   * Whether all who read the file know the capability `referrers`, as containerd 2.2 and Docker 29.1 do: others would pass over
   * the whole file.
   */
  readonly referrers?: boolean
  /** The file that says what to trust at the mirror, relative to the folder of this one; undefined: nothing in particular. */
  readonly mirrorCa?: string | undefined
  /** Other mirrors of this registry, to be asked after ours. */
  readonly others?: readonly string[]
  /** Paths of certificates that were in use for this registry. */
  readonly ca?: readonly string[]
  /** Pairs of a certificate and its key that this registry was shown. */
  readonly client?: readonly (readonly [string, string])[]
}

/**
 * A registry's hosts.toml: the mirror first, for reading only, or pushes would go to it as well.
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function renderHostsToml({
  server,
  mirror,
  referrers = false,
  mirrorCa,
  others = [],
  ca = [],
  client,
}: HostsFile): string {
  const capabilities = ['pull', 'resolve', ...(referrers ? ['referrers'] : [])]
  const hosts = [mirror, ...others].map((url): [string, TomlTable] => [
    url,
    { capabilities, ...(url === mirror && mirrorCa !== undefined && { ca: mirrorCa }) },
  ])
  // What stands before the hosts is for the server, which may be the mirror as well.
  const serverCa = [...(server === mirror && mirrorCa !== undefined ? [mirrorCa] : []), ...ca]
  return (
    writtenByMirror +
    renderToml({
      ...(server !== undefined && { server }),
      ...(serverCa.length > 0 && { ca: serverCa }),
      ...(client !== undefined && { client: client.map((pair) => [...pair]) }),
      host: Object.fromEntries(hosts),
    })
  )
}

/** Whether the file was written by renderHostsToml, whatever became of it since. */
export function isOurHostsToml(text: string): boolean {
  return text.startsWith(writtenByMirror.slice(0, writtenByMirror.indexOf('.')))
}

/** Whether a hosts.toml, whoever wrote it, sends its clients to this mirror. */
export function namesMirror(text: string, mirror: string): boolean {
  return mirror in (read(text)?.host ?? {})
}

/**
 * A file of ours that somebody has changed, without our mirror; undefined when nothing of theirs is in it. As it is when it
 * cannot be read any more, or has no such mirror. `folder`: the name of the folder it lies in.
 */
export function hostsTomlWithout(text: string, mirror: string, folder: string): string | undefined {
  const found = read(text)
  if (found === undefined || !(mirror in found.host)) return text
  const { server } = found.all
  const isOurServer = server === undefined || server === mirror || server === originOf(registryOf(folder))
  const isAllOurs = Object.keys(found.host).length === 1 && Object.keys(found.all).every((key) => ourKeys.has(key))
  if (isAllOurs && isOurServer) return undefined
  const sections = tomlSections(text)
  const kept = sections.filter((section) => !isHost(section, mirror))
  const joined = joinSections(
    kept.map(({ heading, statements }, at) => ({
      heading,
      statements: at > 0 ? statements : statements.flatMap((line, number) => topLine(line, number, server === mirror)),
    })),
  )
  // The blank line that set ours apart goes with it.
  const rest = kept.includes(sections.at(-1)!) ? joined : joined.replace(/(\r?\n)(?:[ \t]*\r?\n)+$/, '$1')
  const left = read(rest)
  // Spelled in a way that was not foreseen: better whole than wrong.
  const isClean = left !== undefined && !(mirror in left.host) && left.all['server'] !== mirror
  return isClean ? rest : text
}

function isHost(section: TomlSection, mirror: string): boolean {
  const [table, url] = sectionPath(section) ?? []
  return table === 'host' && url === mirror
}

/** What stays of a line above the hosts. */
function topLine(line: string, number: number, isServerOurs: boolean): string[] {
  if (number === 0 && line.trimEnd() === writtenByMirror.trimEnd()) return []
  if (!isServerOurs) return [line]
  return /^\s*server\s*=/.test(line) ? [] : withoutOurCa(line)
}

/** A line that says what to trust at the server, without our file. */
function withoutOurCa(line: string): string[] {
  if (!/^\s*ca\s*=/.test(line)) return [line]
  const rest = line.replace(new RegExp(`"[^"]*${caFileName.replaceAll('.', '\\.')}"(, )?`), '')
  return /^\s*ca\s*=\s*(\[\s*\])?\s*$/.test(rest) ? [] : [rest]
}

/** containerd spells `reg:5000` as `reg_5000_` as well. */
function registryOf(folder: string): string {
  return folder.replace(/_(\d+)_$/, ':$1')
}

const ourKeys: ReadonlySet<string> = new Set(['server', 'ca', 'client', 'host'])

function read(text: string): { all: TomlTable; host: TomlTable } | undefined {
  const all = tryToml(text)
  const host = tableOf(all?.['host'] ?? {})
  return all && host && { all, host }
}
