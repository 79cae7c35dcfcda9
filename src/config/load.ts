import type { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { basename, resolve } from 'node:path'
import { getErrno, exitCode, MirrorError, findNearest } from '../lib/errors.ts'
import { parseCertificates } from '../lib/fs.ts'
import { type CommandEnvironment, quoteShellWord } from '../lib/process.ts'
import { describeFileFailure, getFileFailureReason } from '../lib/system-errors.ts'
import { type Config, type ConfigLayer, defaultConfig, type ListenAddress, mergeConfig } from './config.ts'
import type { MirrorPaths } from './paths.ts'
import { type Field, type FlagLayer, flagSettings, settings } from './schema.ts'
import { type ConfigEntry, type ConfigNode, type ConfigProblem, formatProblem } from './values.ts'

/**
 * Names the sources of the configuration. `env` holds the `MIRROR_*` variables, among them those that a command sets for its flags.
 */
interface LoadConfigInput extends Omit<CommandEnvironment, 'platform'> {
  paths: MirrorPaths
}

/**
 * Loads the configuration: defaults < mirror.yaml < `MIRROR_*` < flags. A missing file counts as empty, unless the user named it.
 * Throws one MirrorError (exit 2) that lists the problems of all sources.
 */
export async function loadConfig({ paths, env, homedir, cwd }: LoadConfigInput): Promise<Config> {
  const problems: ConfigProblem[] = []
  let config = defaultConfig()

  const text = await readConfigFile(paths)
  let layer: ConfigLayer | undefined
  if (text !== undefined) {
    // Load the YAML parser only when there is a file, so that an unconfigured mirror starts faster.
    const { parseConfigFile } = await import('./parse.ts')
    const file = parseConfigFile({ text, path: paths.configFile, label: basename(paths.configFile), homedir })
    problems.push(...file.problems)
    layer = file.layer
    config = mergeConfig(config, layer)
  }
  const environment = readEnvironment(env, cwd)
  problems.push(...environment.problems)
  config = applyFlags(mergeConfig(config, environment.layer), environment.flags)
  if (problems.length > 0) {
    const variables = environment.problems.length
    const blamed = { file: problems.length > variables, variables: variables > 0 }
    throw createConfigError(problems, [describeFix(paths, blamed)])
  }
  const shared = findSharedAddresses(
    config,
    { file: layer, variables: environment.layer, flags: environment.flags },
    paths,
  )
  if (shared.problems.length > 0) throw createConfigError(shared.problems, shared.hints)
  return config
}

async function readConfigFile({ configFile, configFileNamed }: MirrorPaths): Promise<string | undefined> {
  try {
    return await readFile(configFile, 'utf8')
  } catch (error) {
    const code = getErrno(error)
    if (code === 'ENOENT' && !configFileNamed) return undefined
    if (code === undefined) throw error
    const failure = describeFileFailure(error)
    const problem = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${failure?.why ?? (error as Error).message}`
    throw new MirrorError(`The configuration file ${configFile} ${problem}.`, {
      exit: exitCode.usage,
      hints:
        code === 'ENOENT'
          ? [`mirror init --config ${quoteShellWord(configFile)}   (creates it)`]
          : [...(failure?.next ?? [])],
      cause: error,
    })
  }
}

function applyFlags(config: Config, flags: FlagLayer): Config {
  return {
    ...config,
    cache: { ...config.cache, listen: withPort(config.cache.listen, flags.cachePort) },
    registry: {
      ...config.registry,
      enabled: flags.noRegistry === true ? false : config.registry.enabled,
      listen: withPort(config.registry.listen, flags.registryPort),
    },
    admin: { ...config.admin, listen: withPort(config.admin.listen, flags.adminPort) },
    // Add to the list, because a user who names a network does not want to remove the default `kind`.
    networks: [...new Set([...config.networks, ...(flags.network ?? [])])],
  }
}

function withPort(listen: ListenAddress[], port: number | undefined): ListenAddress[] {
  if (port === undefined) return listen
  // Merge addresses of one host, which differed in their ports only.
  return [...new Set(listen.map(({ host }) => host))].map((host) => ({ host, port }))
}

function createConfigError(problems: ConfigProblem[], fixes: string[]): MirrorError {
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`
  return new MirrorError(
    `The configuration has ${count}, so nothing was done:\n${problems.map((problem) => `  ${formatProblem(problem)}`).join('\n')}`,
    { exit: exitCode.usage, hints: [...fixes, 'mirror init --dry-run   (prints every key with its default)'] },
  )
}

/** Describes where to fix the problems: the file, the variables or both. */
function describeFix(paths: MirrorPaths, blamed: { readonly file: boolean; readonly variables: boolean }): string {
  const variable = 'the variable named above'
  if (!blamed.file) return `Fix ${variable}`
  return `Fix ${paths.configFile}${blamed.variables ? ` or ${variable}` : ''}`
}

type Environment = Readonly<Record<string, string | undefined>>

/** Returns the names of all variables that set a key. */
export function listSettingVariables(): string[] {
  return [...getVariableNames(settings, 'MIRROR'), ...getVariableNames(flagSettings, 'MIRROR')]
}

/** Lists the variables of the program itself, which set no key. */
const ownVariables = [
  'MIRROR_HOME',
  'MIRROR_CONFIG',
  'MIRROR_DATA',
  'MIRROR_IMAGE',
  'MIRROR_MEMORY',
  'MIRROR_NO_QUOTA_PROBE',
  'MIRROR_NO_SENDFILE',
]

/** Finds variables that set nothing and whose names resemble one that does: `MIRROR_CACHE_MAXSIZE`. */
export function findMisspelledVariables(env: Environment): { readonly name: string; readonly meant: string }[] {
  const known = [...listSettingVariables(), ...ownVariables]
  // The common prefix would make all names alike.
  const suffixes = known.map((name) => name.slice('MIRROR_'.length))
  return Object.entries(env).flatMap(([name, value]) => {
    // Ignore `tcp://…`, as Kubernetes sets it.
    if (!name.startsWith('MIRROR_') || known.includes(name) || !value || value.startsWith('tcp://')) return []
    const meant = findNearest(name.slice('MIRROR_'.length), suffixes)
    return meant === undefined ? [] : [{ name, meant: `MIRROR_${meant}` }]
  })
}

/**
 * Reads the keys that `MIRROR_*` variables set: `MIRROR_CACHE_MAX_SIZE` sets `cache.maxSize`, commas separate the entries of a list.
 * Empty variables count as unset. Ignores variables without a key.
 */
function readEnvironment(
  env: Environment,
  cwd: string,
): { layer: ConfigLayer; flags: FlagLayer; problems: ConfigProblem[] } {
  const problems: ConfigProblem[] = []
  const context = { problems, resolvePath: (path: string) => resolve(cwd, path) }
  return {
    layer: settings.read(toNode(settings, 'MIRROR', env), '', context) ?? {},
    flags: flagSettings.read(toNode(flagSettings, 'MIRROR', env), '', context) ?? {},
    problems,
  }
}

function toNode(field: Field<unknown>, name: string, env: Environment): ConfigNode {
  const position = { source: name }
  const absent: ConfigNode = { kind: 'absent', position }
  if (field.fields !== undefined) {
    const entries = Object.entries(field.fields).flatMap(([key, inner]): ConfigEntry[] => {
      const value = toNode(inner, toVariableName(name, key), env)
      return value.kind === 'absent' ? [] : [{ key, keyPosition: value.position, value }]
    })
    return entries.length === 0 ? absent : { kind: 'map', position: entries[0]!.keyPosition, entries }
  }
  const text = env[name]?.trim()
  // Ignore `tcp://…`: for a service named `mirror-cache` Kubernetes sets MIRROR_CACHE_PORT in every container.
  if (field.variable === undefined || !text || text.startsWith('tcp://')) return absent
  const toScalar = (part: string): ConfigNode => ({ kind: 'scalar', position, text: part.trim() })
  return field.variable === 'scalar'
    ? toScalar(text)
    : {
        kind: 'list',
        position,
        items: text
          .split(',')
          .filter((part) => part.trim() !== '')
          .map(toScalar),
      }
}

function getVariableNames(field: Field<unknown>, name: string): string[] {
  if (field.fields === undefined) return field.variable === undefined ? [] : [name]
  return Object.entries(field.fields).flatMap(([key, inner]) => getVariableNames(inner, toVariableName(name, key)))
}

/** Returns the name of a key's variable: `MIRROR_CACHE` and `maxSize` become `MIRROR_CACHE_MAX_SIZE`. */
function toVariableName(section: string, key: string): string {
  return `${section}_${key.replaceAll(/[A-Z]/g, '_$&').toUpperCase()}`
}

type Part = 'cache' | 'registry' | 'admin'

/** Holds the layers of the configuration; `file` is undefined when there is no file. */
interface ConfigSources {
  readonly file: ConfigLayer | undefined
  readonly variables: ConfigLayer
  readonly flags: FlagLayer
}

interface Claim {
  readonly part: Part
  readonly port: number
  /** Names the setting that chose the port: `--cache-port`. */
  readonly source: string
  /** Holds the precedence of the source: 0 for a default, 3 for a flag. */
  readonly rank: number
}

/** Finds listeners that share one address, of which the second could not start. Blames the setting with the higher precedence. */
function findSharedAddresses(
  config: Config,
  sources: ConfigSources,
  paths: Pick<MirrorPaths, 'configFile'>,
): { problems: ConfigProblem[]; hints: string[] } {
  const claims = new Map<string, Claim>()
  const problems: ConfigProblem[] = []
  const hints = new Set<string>()
  const taken = new Set((['cache', 'registry', 'admin'] as const).flatMap((part) => getPorts(config, part)))
  for (const part of ['cache', 'registry', 'admin'] as const) {
    if (part === 'registry' && !config.registry.enabled) continue
    for (const { host, port } of config[part].listen) {
      if (port === 0) continue
      const address = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
      const later = { part, port, ...findSource(part, sources, paths) }
      const earlier = claims.get(address)
      claims.set(address, later)
      if (earlier === undefined) continue
      const [cause, other] = earlier.rank > later.rank ? [earlier, later] : [later, earlier]
      problems.push({
        position: { source: cause.source },
        path: `${cause.part}.listen`,
        message: `the ${cause.part} cannot listen on ${address}, which the ${other.part} has (${other.source})`,
      })
      const free = findFreePort(port, taken)
      hints.add(`Add --${other.part}-port ${free}   (or MIRROR_${other.part.toUpperCase()}_PORT=${free})`)
    }
  }
  return { problems, hints: [...hints] }
}

function findSource(
  part: Part,
  { file, variables, flags }: ConfigSources,
  { configFile }: Pick<MirrorPaths, 'configFile'>,
): Pick<Claim, 'source' | 'rank'> {
  const variable = `MIRROR_${part.toUpperCase()}`
  if (flags[`${part}Port`] !== undefined) return { source: `--${part}-port or ${variable}_PORT`, rank: 3 }
  if (variables[part]?.listen !== undefined) return { source: `${variable}_LISTEN`, rank: 2 }
  if (file?.[part]?.listen !== undefined) return { source: `${basename(configFile)}, ${part}.listen`, rank: 1 }
  return { source: 'the default', rank: 0 }
}

function getPorts(config: Config, part: Part): number[] {
  return config[part].listen.map(({ port }) => port)
}

function findFreePort(port: number, taken: ReadonlySet<number>): number {
  const step = port + 3000 <= 65_535 ? 1000 : -1000
  let free = port + step
  while (taken.has(free)) free += step
  return free
}

/** Holds the facts that clients need about the mirror's certificate. */
export interface MirrorCertificate {
  /** Holds the CA that clients must trust; undefined when the systems' stores trust it already. */
  readonly ca: { readonly pem: string; readonly file: string } | undefined
  /** Checks whether the certificate is valid for this host name or address; true when the certificate is not known. */
  isFor(hostname: string): boolean
}

/**
 * Finds the CA of the mirror's certificate: `caFile`, `tls.ca` from the configuration, or the last certificate of `tls.cert` if it is
 * self-signed. Throws a MirrorError (usage) for a file that cannot be read or has no certificate.
 */
export async function findCertificate(
  tls: Config['tls'],
  caFile: string | undefined,
  read: ReadTextFile = (file) => readFile(file, 'utf8'),
): Promise<MirrorCertificate> {
  const caPath = caFile ?? tls?.ca
  const chain = tls && (await readCertificateFile(tls.cert, '"tls.cert" in mirror.yaml', read))
  const ca =
    caPath === undefined
      ? undefined
      : await (caFile
          ? readCertificateFile(caPath, '--ca', (file) => readFile(file, 'utf8'))
          : readCertificateFile(caPath, '"tls.ca" in mirror.yaml', read))
  const last = chain?.at(-1)
  return {
    ca:
      caPath !== undefined && ca
        ? { pem: ca.join(''), file: caPath }
        : tls && last && isSelfSigned(last)
          ? { pem: last.toString(), file: tls.cert }
          : undefined,
    isFor: (hostname) => chain?.[0] === undefined || isIssuedFor(chain[0], hostname.replace(/^\[|\]$/g, '')),
  }
}

type ReadTextFile = (file: string) => Promise<string>

async function readCertificateFile(file: string, what: string, read: ReadTextFile): Promise<X509Certificate[]> {
  const certificates = parseCertificates(await readText(file, what, read))
  if (certificates && certificates.length > 0) return certificates
  throw new MirrorError(`${file} has no PEM certificate.`, { exit: exitCode.usage, hints: [`Check ${what}`] })
}

async function readText(file: string, what: string, read: ReadTextFile): Promise<string> {
  try {
    return await read(file)
  } catch (cause) {
    if (getErrno(cause) === undefined) throw cause
    throw new MirrorError(`The certificate ${file} cannot be read: ${getFileFailureReason(cause)}.`, {
      exit: exitCode.usage,
      hints: [`Check ${what}`],
      cause,
    })
  }
}

/** Checks whether a certificate is self-signed. `checkIssued` would reject a server's certificate, which must not sign others. */
function isSelfSigned(certificate: X509Certificate): boolean {
  return certificate.subject === certificate.issuer && certificate.verify(certificate.publicKey)
}

/** Checks the host as Go programs do, which ignore the subject. */
function isIssuedFor(certificate: X509Certificate, host: string): boolean {
  const found = isIP(host) === 0 ? certificate.checkHost(host, { subject: 'never' }) : certificate.checkIP(host)
  return found !== undefined
}
