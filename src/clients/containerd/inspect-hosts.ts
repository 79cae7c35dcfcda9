import { basename, dirname } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { isAtLeast } from '../address.ts'
import { asStrings, asTable, readToml, type TomlTable, tryReadToml } from '../edit/toml.ts'
import { caFileName } from '../files/kinds.ts'
import type { FilesSnapshot, Finding } from '../types.ts'
import { builtInUpstreams } from '../../upstream/upstream.ts'
import { hubAliases } from '../address.ts'
import { isMirrorHostsToml } from './hosts-toml.ts'

/** Describes the program that reads hosts.toml files. */
interface HostsReader {
  /** Names it: `containerd 2.1.9`. */
  readonly name: string
  /** Is true if it knows the capability `referrers`; undefined when its version is unknown. */
  readonly referrers: boolean | undefined
}

/** Holds the keys above the tables. */
const rootKeys: ReadonlySet<string> = new Set([
  'server',
  'host',
  'capabilities',
  'ca',
  'client',
  'skip_verify',
  'header',
  'override_path',
  'dial_timeout',
])

const capabilities: readonly string[] = ['pull', 'resolve', 'push']

/** Matches a duration of Go: `1s`, `1m30s`, `.5s`, `0`. https://pkg.go.dev/time#ParseDuration */
const duration = /^[+-]?(?:0|(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+)$/

/** Returns the reader for a version of containerd. */
export function toContainerdReader(version: string | undefined): HostsReader {
  return {
    name: version === undefined ? 'containerd' : `containerd ${version}`,
    referrers: version === undefined ? undefined : isAtLeast(version, 2, 2),
  }
}

/**
 * Inspects each hosts.toml below these folders. A reader reports a fault in its log only, and pulls from the origin. `cache`: the address
 * of the mirror; undefined when unknown.
 */
export function inspectHostsFolders(
  roots: readonly string[],
  reader: HostsReader,
  files: FilesSnapshot,
  cache: string | undefined,
): readonly Finding[] {
  const paths = files.paths.filter(
    (path) => /[\\/]hosts\.toml$/.test(path) && roots.some((root) => dirname(dirname(path)) === root),
  )
  const getText = (path: string) => files.getText(path) ?? ''
  const isUsed = cache !== undefined && paths.some((path) => leadsTo(getText(path), cache))
  return paths.flatMap((path) => {
    const beside = files.paths.filter((one) => dirname(one) === dirname(path)).map((one) => basename(one))
    return [
      ...inspectHostsToml({ path, text: getText(path), reader, beside }),
      ...(isUsed ? inspectBypass(path, getText(path), cache) : []),
    ]
  })
}

/** Finds a file that leaves out the mirror for a registry that it serves: the folder of a registry hides `_default`. */
function inspectBypass(path: string, text: string, cache: string): Finding[] {
  const registry = basename(dirname(path))
  // The syntax of a broken file is a finding of its own.
  if (!builtInUpstreams.has(registry) || isMirrorHostsToml(text) || tryReadToml(text) === undefined) return []
  if (leadsTo(text, cache)) return []
  return [
    {
      fault: 'hosts.bypass',
      state: 'warn',
      where: path,
      saw: `${path} does not name the mirror, so pulls from ${registry} bypass it.`,
      mend: { advice: `Remove ${path}, or write [host.${JSON.stringify(cache)}] before its other hosts.` },
    },
  ]
}

/** Reports whether a hosts.toml names an address of the mirror, with any path, as a host or as the server. */
function leadsTo(text: string, cache: string): boolean {
  const root = tryReadToml(text)
  const urls = [root?.['server'], ...Object.keys(asTable(root?.['host']) ?? {})]
  return urls.some((url) => typeof url === 'string' && toAddress(url) === toAddress(cache))
}

function toAddress(url: string): string {
  return getHost(url).replace(/^localhost:/, '127.0.0.1:')
}

interface InspectedFile {
  readonly path: string
  readonly text: string
  readonly reader: HostsReader
  /** Holds the names of the files in its folder. */
  readonly beside: readonly string[]
}

/** Finds the known faults of one hosts.toml. https://github.com/containerd/containerd/blob/main/docs/hosts.md */
export function inspectHostsToml({ path, text, reader, beside }: InspectedFile): readonly Finding[] {
  const isOwn = isMirrorHostsToml(text)
  const toFinding = (fault: string, state: Finding['state'], saw: string, advice: string): Finding => ({
    fault: `hosts.${fault}`,
    state,
    where: path,
    saw: `${path} ${saw}`,
    mend: isOwn ? 'configure' : { advice },
  })
  let root: TomlTable
  try {
    root = readToml(path, text)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const repeated = findRepeatedHeading(text)
    const why =
      repeated === undefined
        ? `is not valid TOML (${error.message.replace(/^.*so it is left alone: /, '').replace(/\.$/, '')})`
        : `has the table ${repeated} twice`
    return [toFinding('syntax', 'fail', `${why}, so ${reader.name} ignores the file.`, `Correct ${path}.`)]
  }
  const folder = basename(dirname(path))
  if (root['host'] !== undefined && asTable(root['host']) === undefined)
    return [
      toFinding(
        'syntax',
        'fail',
        `has a "host" that is no table of hosts, so ${reader.name} ignores the file.`,
        `Write [host."http://…"] in ${path}.`,
      ),
    ]
  const hosts = Object.entries(asTable(root['host']) ?? {}).map(([url, value]) => [url, asTable(value) ?? {}] as const)
  const findings: Finding[] = []
  const unread = Object.keys(root).find((key) => !rootKeys.has(key))
  if (unread !== undefined)
    findings.push(
      toFinding(
        'syntax',
        'warn',
        `has the key ${unread}, which ${reader.name} does not know and passes over.`,
        `Remove ${unread} from ${path}, or correct its name.`,
      ),
    )
  if (hubAliases.has(folder))
    findings.push(
      toFinding(
        'hub',
        'warn',
        `has no effect on images of Docker Hub, whose folder is docker.io.`,
        `Rename ${dirname(path)} to docker.io.`,
      ),
    )
  const swallowed = hosts.find(([, table]) => table['server'] !== undefined)
  if (swallowed !== undefined)
    findings.push(
      toFinding(
        'swallowed',
        'warn',
        `has server below [host.${JSON.stringify(swallowed[0])}], whose key it is then without effect.`,
        `Move server above the first table of ${path}.`,
      ),
    )
  for (const [where, table] of [['the file', root], ...hosts] as const) {
    const listed = table['capabilities']
    if (listed !== undefined && !Array.isArray(listed))
      findings.push(
        toFinding(
          'capability',
          'fail',
          `has capabilities that are no list, so ${reader.name} ignores the file.`,
          `Write capabilities = ["pull", "resolve"] for ${where} in ${path}.`,
        ),
      )
    const unknown = asStrings(table['capabilities']).find((name) => !isKnown(name.toLowerCase(), reader))
    if (unknown !== undefined)
      findings.push(
        toFinding(
          'capability',
          'fail',
          `names the capability ${JSON.stringify(unknown)}, which ${reader.name} does not know, so it ignores the file.`,
          `Remove ${JSON.stringify(unknown)} from the capabilities of ${where} in ${path}.`,
        ),
      )
    const timeout = table['dial_timeout']
    if (timeout !== undefined && (typeof timeout !== 'string' || !duration.test(timeout)))
      findings.push(
        toFinding(
          'timeout',
          'fail',
          `has the dial_timeout ${JSON.stringify(timeout)}, which is no duration, so ${reader.name} ignores the file.`,
          `Write a text such as "5s" for dial_timeout in ${path}.`,
        ),
      )
  }
  const { server } = root
  const isOrigin = (url: string) =>
    [folder, typeof server === 'string' ? server : ''].some((one) => isSameHost(url, one))
  for (const [url, table] of hosts) findings.push(...inspectHost(url, table, folder, isOrigin(url), toFinding))
  if (typeof server === 'string' && /^(?:https?:\/\/)?docker\.io\/?$/.test(server))
    findings.push(
      toFinding(
        'server',
        'warn',
        `has the server ${server}, which is no registry, so pulls fail while the mirror is down.`,
        `Write server = "https://registry-1.docker.io" in ${path}.`,
      ),
    )
  const named = new Set([root, ...hosts.map(([, table]) => table)].flatMap(listCertificates))
  const ignored = beside.filter((name) => name.endsWith('.crt') && name !== caFileName && !named.has(name))
  if (ignored.length > 0)
    findings.push(
      toFinding(
        'certificates',
        'warn',
        `does not name ${ignored.join(', ')} beside it, so ${reader.name} ignores ${ignored.length === 1 ? 'this certificate' : 'these certificates'}.`,
        `Add ca = [${ignored.map((name) => JSON.stringify(name)).join(', ')}] above the first table of ${path}.`,
      ),
    )
  return findings
}

function inspectHost(
  url: string,
  table: TomlTable,
  folder: string,
  isOrigin: boolean,
  toFinding: (fault: string, state: Finding['state'], saw: string, advice: string) => Finding,
): Finding[] {
  const findings: Finding[] = []
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(url)?.[1]?.toLowerCase()
  if (scheme !== 'http' && scheme !== 'https')
    findings.push(
      toFinding(
        'scheme',
        scheme === undefined ? 'warn' : 'fail',
        `names the host ${JSON.stringify(url)} ${scheme === undefined ? 'without a scheme, which means https' : `with the unknown scheme ${scheme}`}.`,
        `Write the host as [host."http://${url.replace(/^.*:\/\//, '')}"].`,
      ),
    )
  const parsed = scheme !== undefined && URL.canParse(url) ? new URL(url) : undefined
  if (parsed !== undefined && /^\/v2(?:\/|$)/.test(parsed.pathname) && table['override_path'] !== true)
    findings.push(
      toFinding(
        'path',
        'warn',
        `names the host ${url} without override_path, so it is asked for ${parsed.pathname.replace(/\/$/, '')}/v2/….`,
        `Add override_path = true to that host.`,
      ),
    )
  const granted = asStrings(table['capabilities']).map((name) => name.toLowerCase())
  const isPublic =
    folder === '_default' || (folder.includes('.') && !/^(?:localhost|127\.|.*_\d+_$|.*:\d+$)/.test(folder))
  if (isPublic && !isOrigin && (table['capabilities'] === undefined || granted.includes('push')))
    findings.push(
      toFinding(
        'push',
        'warn',
        `lets pushes go to the host ${url}.`,
        `Write capabilities = ["pull", "resolve"] for that host.`,
      ),
    )
  const isPlain = parsed?.protocol === 'http:' && parsed.port !== ''
  const setting = ['skip_verify', 'ca', 'client'].find((key) => table[key] !== undefined)
  if (isPlain && setting !== undefined)
    findings.push(
      toFinding(
        'plain',
        'warn',
        `sets ${setting} for the plain host ${url}, so each connection is tried with HTTPS first.`,
        `Remove ${setting} from that host.`,
      ),
    )
  return findings
}

function isSameHost(one: string, other: string): boolean {
  return getHost(one) === getHost(other)
}

/** Returns the host of a URL, which may lack its scheme, or of a folder: `registry_5000_` means `registry:5000`. */
function getHost(text: string): string {
  const [host = ''] = text.replace(/^.*?:\/\//, '').split('/', 1)
  return host.replace(/_(\d+)_$/, ':$1').toLowerCase()
}

function isKnown(name: string, { referrers }: HostsReader): boolean {
  return capabilities.includes(name) || (name === 'referrers' && referrers !== false)
}

/** Returns the first heading that the text has twice, which parsers refuse. */
function findRepeatedHeading(text: string): string | undefined {
  const headings = text.match(/^[ \t]*\[[^[\]\n]+\]/gm)?.map((heading) => heading.trim()) ?? []
  return headings.find((heading, at) => headings.indexOf(heading) !== at)
}

/** Lists the names of the certificates that a table names, without their folders. */
function listCertificates({ ca }: TomlTable): string[] {
  const names = typeof ca === 'string' ? [ca] : asStrings(ca)
  return names.map((name) => basename(name))
}
