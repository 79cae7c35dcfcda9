import { MirrorError } from '../../lib/errors.ts'
import { quoteShellWord } from '../../lib/process.ts'
import { hubAliases } from '../address.ts'
import { asTable, asTables, readToml, type TomlTable, tryReadToml } from '../edit/toml.ts'
import { isWrittenByMirror } from '../files/kinds.ts'
import type { FilesSnapshot, Finding } from '../types.ts'
import {
  getMainFile,
  isOldStyle,
  type PodmanTarget,
  readRegistryTables,
  type RegistryTable,
  sortByReadingOrder,
  withoutEndSlashes,
} from './registries-conf.ts'

/** Lists the keys at the root of the file; after a table they would be part of it. */
const rootKeys = [
  'unqualified-search-registries',
  'short-name-mode',
  'credential-helpers',
  'additional-layer-store-auth-helper',
]

/** Finds the known faults of the files that podman, buildah and skopeo read. */
export function inspectPodman(
  cache: string | undefined,
  { files: layout, scope }: PodmanTarget,
  files: FilesSnapshot,
): readonly Finding[] {
  const { system, user, named, modern } = layout
  const own = files.paths.filter((path) => path.endsWith('.conf') && isWrittenByMirror(files.getText(path) ?? ''))
  const configure = `mirror configure podman --scope user`
  const findings: Finding[] = []
  const add = (fault: string, state: Finding['state'], where: string, saw: string, mend: Finding['mend']) =>
    findings.push({ fault: `podman.${fault}`, state, where, saw, mend })

  const broken = files.paths.filter((path) => path.endsWith('.conf') && !isReadable(path, files))
  for (const path of broken)
    add('syntax', 'fail', path, `${path} is not valid TOML, so podman fails.`, { advice: `Correct ${path}.` })
  const readable = files.paths.filter((path) => path.endsWith('.conf') && !broken.includes(path))
  const read = sortByReadingOrder(layout, readable)
  const mains = [...system, ...(user === undefined ? [] : [user])].map(getMainFile)

  for (const path of readable) {
    const isMain = mains.includes(path) || path === named
    const toml = readToml(path, files.getText(path) ?? '')
    const isOld = isOldStyle(path, files.getText(path) ?? '')
    if (isOld && toml['registry'] !== undefined)
      add('old-style', 'fail', path, `${path} mixes the two versions of its format, so podman fails.`, {
        advice: `Remove the [registries.…] lists from ${path}, or its [[registry]] tables.`,
      })
    else if (isOld)
      add(
        'old-style',
        modern || !isMain ? 'fail' : 'warn',
        path,
        `${path} is in the first version of its format, which ${modern || !isMain ? 'podman refuses' : 'podman 6 refuses'}.`,
        {
          advice: `Write unqualified-search-registries and [[registry]] tables in ${path} instead of [registries.…] lists.`,
        },
      )
    for (const table of asTables(toml['registry'])) {
      const swallowed = rootKeys.find((key) => key in table)
      if (swallowed !== undefined)
        add(
          'swallowed',
          'warn',
          path,
          `${swallowed} in ${path} stands after a [[registry]] table, and so is a key of that table without effect.`,
          { advice: `Move ${swallowed} above the first table of ${path}.` },
        )
    }
  }
  for (const path of files.paths) {
    const folder = path.slice(0, path.lastIndexOf('/'))
    if (/registries(?:\.\w+)?\.conf\.d$/.test(folder) && isMisnamed(path, files))
      add('drop-in', 'warn', path, `${path} is not read, because its name does not end in .conf.`, {
        command: `mv ${quoteShellWord(path)} ${quoteShellWord(`${path}.conf`)}`,
      })
  }
  // Versions before 6 read the drop-ins, which count before the named file.
  if (named !== undefined && modern && !own.includes(named))
    add(
      'variable',
      'warn',
      named,
      `CONTAINERS_REGISTRIES_CONF makes podman 6 and later read ${named} instead of the usual files and their drop-ins.`,
      {
        command: 'unset CONTAINERS_REGISTRIES_CONF',
      },
    )
  const userMain = user === undefined ? undefined : getMainFile(user)
  const isHiding = !modern && userMain !== undefined && named === undefined && files.has(userMain)
  for (const path of own) {
    if (read.includes(path)) continue
    const isSystem = system.some((folder) => path.startsWith(`${folder}/`))
    if (isHiding && isSystem)
      add('hidden', 'fail', path, `${userMain} replaces all files of the system, among them ${path}.`, {
        command: configure,
      })
  }
  if (isHiding && own.length === 0 && system.some((folder) => files.has(getMainFile(folder))) && scope === 'user')
    add('hidden', 'warn', userMain, `${userMain} replaces all files of the system.`, { command: configure })

  const order = new Map(read.map((path, at) => [path, at]))
  const tables = readRegistryTables(read, files)
  for (const { prefix, path, where } of tables) {
    const later = own.filter((one) => (order.get(one) ?? Infinity) < order.get(path)!)
    const replaced = readRegistryTables(later, files).some((one) => one.prefix === prefix)
    if (replaced && !own.includes(path))
      add('overridden', 'fail', path, `${where} replaces the table of ${prefix} in ${later.join(', ')}.`, 'configure')
  }
  for (const { prefix, path, where, table } of tables) {
    const wider = own.length === 0 || own.includes(path) ? undefined : findWider(prefix, readRegistryTables(own, files))
    const hasMirror =
      cache !== undefined && asTables(table['mirror']).some((mirror) => isAt(mirror, new URL(cache).host))
    const location = withoutEndSlashes(table['location'])
    const isRemapped = location !== '' && location !== prefix
    if (wider !== undefined && !hasMirror && !isRemapped && table['blocked'] !== true)
      add(
        'overridden',
        'warn',
        path,
        `${where} has a table of ${prefix} without the mirror, which counts before that of ${wider}.`,
        {
          advice: `Remove this table, or add the mirror to it: location = "${cache === undefined ? 'HOST:PORT' : new URL(cache).host}/${prefix}"`,
        },
      )
  }
  // Of equal prefixes, the table of the last file counts, whichever settings the others have.
  const isEffective = (path: string, prefix: string) => tables.findLast((one) => one.prefix === prefix)?.path === path
  for (const one of tables) {
    const { table, where, path, prefix } = one
    const mirrors = asTables(table['mirror'])
    const locate = (key: string, value: unknown) => locateKey(one, files.getText(path) ?? '', key, value)
    const locations = [table, ...mirrors].map((one) => withoutEndSlashes(one['location']))
    const withScheme = locations.find((location) => location.includes('://'))
    if (withScheme !== undefined)
      add(
        'location',
        'fail',
        path,
        `${locate('location', withScheme)} has the location ${withScheme} with a scheme, so podman fails.`,
        { advice: `Write ${withScheme.replace(/^.*:\/\//, '')} at ${locate('location', withScheme)}.` },
      )
    if (hubAliases.has(prefix) && mirrors.length > 0)
      add(
        'hub',
        'warn',
        path,
        `${where} has mirrors for ${prefix}, which no image name begins with: Docker Hub is docker.io.`,
        {
          advice: `Write prefix = "docker.io" at ${where}.`,
        },
      )
    if (table['blocked'] === true && isEffective(path, prefix))
      add('blocked', 'warn', path, `${locate('blocked', true)} blocks ${prefix}.`, {
        advice: 'Remove blocked = true there.',
      })
    if (cache === undefined) continue
    const { host, protocol } = new URL(cache)
    for (const mirror of mirrors.filter((one) => isAt(one, host))) {
      // Without a path, the mirror takes the name for one of Docker Hub.
      if (withoutEndSlashes(mirror['location']) === host && prefix !== 'docker.io')
        add(
          'location',
          'fail',
          path,
          `${locate('location', mirror['location'])} has the mirror ${host} without the name of the registry, so another image may come.`,
          {
            advice: `Write location = "${host}/${prefix}" for that mirror in ${path}.`,
          },
        )
      const mend = own.includes(path)
        ? ('configure' as const)
        : { advice: `Add insecure = true to that mirror in ${path}.` }
      if (protocol === 'http:' && mirror['insecure'] !== true)
        add(
          'insecure',
          'fail',
          path,
          `${locate('insecure' in mirror ? 'insecure' : 'location', mirror['insecure'] ?? mirror['location'])} has no insecure = true for ${String(mirror['location'])}, so podman contacts it by HTTPS.`,
          mend,
        )
      const digestKey = table['mirror-by-digest-only'] === true ? 'mirror-by-digest-only' : 'pull-from-mirror'
      if (mirror['pull-from-mirror'] === 'digest-only' || table['mirror-by-digest-only'] === true)
        add(
          'digest-only',
          'warn',
          path,
          `${locate(digestKey, table[digestKey] ?? mirror[digestKey])} uses the mirror for digests only, so each tag is pulled from the origin.`,
          { advice: `Remove ${digestKey} there.` },
        )
    }
  }
  return dropRepeated(findings)
}

/** Names the file and the line of a key with a value below the heading of a table; the heading's line where it is written in another way. */
function locateKey({ path, where }: RegistryTable, text: string, key: string, value: unknown): string {
  const start = Number(where.slice(path.length + 1))
  if (start === 0) return where
  const lines = text.split('\n').slice(start)
  const end = lines.findIndex((line) => /^\s*\[\[\s*registry\s*\]\]/.test(line))
  const at = lines
    .slice(0, end === -1 ? lines.length : end)
    .findIndex((line) => new RegExp(`^\\s*["']?${key}["']?\\s*=`).test(line) && line.includes(String(value)))
  return at === -1 ? where : `${path}:${start + at + 1}`
}

/** Matches the names of backups, of files that a package manager keeps, and of files that a user has switched off. */
const unusedName = /(?:~|\.(?:bak|orig|old|save|sw[op]|rpmsave|rpmnew|rpmorig|disabled)|\.dpkg-[^/]*|\/README[^/]*)$/i

/** Reports whether a file has tables of registries and a name that podman does not read. */
function isMisnamed(path: string, files: FilesSnapshot): boolean {
  if (path.endsWith('.conf') || unusedName.test(path)) return false
  return tryReadToml(files.getText(path) ?? '')?.['registry'] !== undefined
}

function isReadable(path: string, files: FilesSnapshot): boolean {
  try {
    const toml = readToml(path, files.getText(path) ?? '')
    return toml['registry'] === undefined || asTable(toml['registry']) === undefined
  } catch (error) {
    if (error instanceof MirrorError) return false
    throw error
  }
}

/** Reports whether the location of a mirror is at a host. */
function isAt({ location }: TomlTable, host: string): boolean {
  return String(location).split('/', 1)[0] === host
}

/** Returns the prefix of the widest table that a longer prefix counts before. */
function findWider(prefix: string, tables: readonly RegistryTable[]): string | undefined {
  return tables.find((one) => prefix.startsWith(`${one.prefix}/`))?.prefix
}

function dropRepeated(findings: readonly Finding[]): Finding[] {
  return findings.filter(
    ({ fault, saw }, at) => findings.findIndex((one) => one.fault === fault && one.saw === saw) === at,
  )
}
