import { isAbsolute, join, posix, resolve, win32 } from 'node:path'
import { describeForeign, findForeign, isRoot, userHome } from '../lib/ownership.ts'
import type { Surroundings } from '../lib/process.ts'

/** Where this user's mirror keeps its files; all absolute. Nothing is said about what exists. */
export interface MirrorPaths {
  configFile: string
  /** Whether the user named the configuration file, so that it must exist. */
  configFileNamed: boolean
  /** Cached and pushed content. */
  dataDir: string
  /** What the running mirror writes about itself. */
  stateDir: string
  logFile: string
  stateFile: string
  tokenFile: string
}

/**
 * Where root keeps what it has done to the whole machine, for every user to read; undefined on Windows, where an administrator
 * keeps the home folder of the user and any user may make folders in ProgramData.
 */
export function systemStateDir(platform: string): string | undefined {
  if (platform === 'win32') return undefined
  return platform === 'darwin' ? '/Library/Application Support/mirror' : '/var/lib/mirror'
}

/**
 * The platform's places (XDG on Linux, https://specifications.freedesktop.org/basedir-spec/latest/), or all below `MIRROR_HOME`.
 * `MIRROR_CONFIG` and `MIRROR_DATA` move the configuration file and the data folder alone.
 */
export function mirrorPaths({ platform, env, homedir, cwd }: Surroundings): MirrorPaths {
  const path = platform === 'win32' ? win32 : posix
  const named = (name: string) => (env[name] ? path.resolve(cwd, env[name]) : undefined)
  const home = named('MIRROR_HOME')
  const folders = home === undefined ? getPlatformFolders() : below(home)
  const { stateDir } = folders
  return {
    configFile: named('MIRROR_CONFIG') ?? path.join(folders.configDir, 'mirror.yaml'),
    configFileNamed: Boolean(env['MIRROR_CONFIG']),
    dataDir: named('MIRROR_DATA') ?? folders.dataDir,
    stateDir,
    logFile: path.join(stateDir, 'mirror.log'),
    stateFile: path.join(stateDir, 'mirror.json'),
    tokenFile: path.join(stateDir, 'token'),
  }

  function below(root: string) {
    return { configDir: root, dataDir: path.join(root, 'data'), stateDir: path.join(root, 'state') }
  }

  function getPlatformFolders() {
    if (platform === 'win32')
      return below(path.join(env['LOCALAPPDATA'] || path.join(homedir, 'AppData', 'Local'), 'mirror'))
    if (platform === 'darwin') return below(path.join(homedir, 'Library', 'Application Support', 'mirror'))
    const xdg = (name: string, fallback: string) => {
      const value = env[name]
      return path.join(value && path.isAbsolute(value) ? value : path.join(homedir, fallback), 'mirror')
    }
    return {
      configDir: xdg('XDG_CONFIG_HOME', '.config'),
      dataDir: xdg('XDG_DATA_HOME', '.local/share'),
      stateDir: xdg('XDG_STATE_HOME', '.local/state'),
    }
  }
}

type Environment = Readonly<Record<string, string | undefined>>

/** A variable, or a part of one, that root does not use. */
export interface LeftOut {
  readonly name: string
  /** The path. */
  readonly value: string
  /** `/home/alice belongs to alice` */
  readonly why: string
  /** The user to whom the path belongs; undefined where it is a mode that lets others write. */
  readonly owner: number | undefined
}

/** An environment in which every place is root's own. */
interface RootPaths {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly leftOut: readonly LeftOut[]
}

/** Folders and files that mirror, Node, or a program that mirror runs obeys. Some are lists, as PATH is. */
const pathVariables = new Set(
  `
  XDG_CONFIG_HOME XDG_DATA_HOME XDG_STATE_HOME XDG_CACHE_HOME XDG_RUNTIME_DIR
  TMPDIR TMP TEMP
  MIRROR_HOME MIRROR_CONFIG MIRROR_DATA MIRROR_REGISTRY_AUTH_HTPASSWD
  MIRROR_TLS_CERT MIRROR_TLS_KEY MIRROR_TLS_CA
  DOCKER_CONFIG DOCKER_CERT_PATH BUILDX_CONFIG KUBECONFIG MINIKUBE_HOME REGISTRY_AUTH_FILE
  CONTAINERS_CONF CONTAINERS_CONF_OVERRIDE CONTAINERS_STORAGE_CONF
  CONTAINERS_REGISTRIES_CONF CONTAINERS_REGISTRIES_CONF_OVERRIDE REGISTRIES_CONFIG_PATH
  NODE_EXTRA_CA_CERTS NODE_PATH NODE_COMPILE_CACHE SSL_CERT_FILE SSL_CERT_DIR
  OPENSSL_CONF OPENSSL_MODULES CURL_CA_BUNDLE REQUESTS_CA_BUNDLE GNUPGHOME PASSWORD_STORE_DIR
`
    .trim()
    .split(/\s+/),
)
/** Of the clouds: a profile may name a program that gets the credential. */
const cloudPathVariable = /^(AWS|AZURE|GOOGLE|CLOUDSDK)_[A-Z0-9_]*(FILE|DIR|CONFIG|CREDENTIALS)$/

/** Where sudo looks for programs by itself, as distributions set it. */
const systemFolders = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']

/** Whether root has to look at what it finds around it: not on Windows, and not in a container of ours, where nobody else is. */
export function looksAtOwners({ platform, env }: Pick<Surroundings, 'platform' | 'env'>): boolean {
  return isRoot() && platform !== 'win32' && !env['MIRROR_INSTANCE']
}

/**
 * The environment of root without the places that others can change, as `sudo -E` and `su -m` keep them: whoever can change a
 * configuration file, or a folder with programs, would otherwise act as root. HOME becomes root's own home folder.
 */
export function toRootPaths({ env, cwd }: Pick<Surroundings, 'env' | 'cwd'>, rootsHome = userHome(0)): RootPaths {
  const own: Record<string, string | undefined> = { ...env }
  const leftOut: LeftOut[] = []
  const isSafe = (name: string, value: string) => {
    const found = findForeign(resolve(cwd, value))
    if (found) leftOut.push({ name, value, why: describeForeign(found), owner: found.owner })
    return found === undefined
  }
  if (env['HOME'] && !isSafe('HOME', env['HOME'])) own['HOME'] = rootsHome ?? '/root'
  for (const [name, value] of Object.entries(env)) {
    if (!value || !(pathVariables.has(name) || cloudPathVariable.test(name))) continue
    if (!value.split(getListSeparator(name)).every((path) => path === '' || isSafe(name, path))) delete own[name]
  }
  for (const name of ['DOCKER_HOST', 'CONTAINER_HOST']) {
    const socket = /^unix:\/\/(.+)$/.exec(env[name] ?? '')?.[1]
    if (socket && !isSafe(name, socket)) delete own[name]
  }
  const options = env['NODE_OPTIONS']
  if (options && !getOptionPaths(options).every((path) => isSafe('NODE_OPTIONS', path))) delete own['NODE_OPTIONS']
  const path = env['PATH']
  if (path) own['PATH'] = filterProgramFolders(path, isSafe)
  return { env: own, leftOut }
}

/** Of settings that a flag has given: what root would not use. */
export function pathsOfOthers(variables: Environment, cwd: string): readonly LeftOut[] {
  return toRootPaths({ env: variables, cwd }).leftOut
}

function getListSeparator(name: string): string {
  return ['KUBECONFIG', 'NODE_PATH', 'SSL_CERT_DIR'].includes(name) ? ':' : '\0'
}

/** What options of Node name: `--require /path`, `--import=file:///path`. */
function getOptionPaths(options: string): string[] {
  const words = options.split(/\s+/).map((word) => word.replace(/^--?[\w-]+=/, '').replace(/^file:\/\//, ''))
  return words.filter((word) => word.includes('/'))
}

function filterProgramFolders(path: string, isSafe: (name: string, value: string) => boolean): string {
  const folders = path.split(':')
  // A relative one means the folder in which the command happens to be called.
  const kept = folders.filter(
    (folder) => systemFolders.includes(folder) || (isAbsolute(folder) && isSafe('PATH', folder)),
  )
  return (kept.length > 0 ? kept : systemFolders).join(':')
}

/** The cache's folder below the data folder. */
export function cacheRoot({ dataDir }: MirrorPaths): string {
  return join(dataDir, 'cache')
}

/** The registry's folder below the data folder. */
export function registryRoot({ dataDir }: MirrorPaths): string {
  return join(dataDir, 'registry')
}
