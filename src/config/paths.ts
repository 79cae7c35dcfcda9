import { isAbsolute, join, posix, resolve, win32 } from 'node:path'
import { describeForeign, findForeign, isRoot, getUserHome } from '../lib/ownership.ts'
import type { CommandEnvironment } from '../lib/process.ts'

/** Lists the variables with paths that mirror, Node, or a program that mirror runs uses. Some hold lists, as PATH does. */
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

/** Matches path variables of the clouds, whose profiles may name a program that provides credentials. */
const cloudPathVariable = /^(AWS|AZURE|GOOGLE|CLOUDSDK)_[A-Z0-9_]*(FILE|DIR|CONFIG|CREDENTIALS)$/
/** Lists the folders of sudo's default `secure_path` in distributions. */
const systemFolders = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']

/** Holds the paths of this user's mirror; all absolute. They need not exist. */
export interface MirrorPaths {
  configFile: string
  /** Is true when the user named the configuration file, so that it must exist. */
  configFileNamed: boolean
  /** Names the folder of cached and pushed content. */
  dataDir: string
  /** Names the folder for the state of the running mirror. */
  stateDir: string
  logFile: string
  stateFile: string
  tokenFile: string
}

/**
 * Returns the folder where root records its changes to the whole machine, which every user can read. Undefined on Windows, where an
 * administrator keeps the home folder of the user, and any user can create folders in ProgramData.
 */
export function getSystemStateDir(platform: string): string | undefined {
  if (platform === 'win32') return undefined
  return platform === 'darwin' ? '/Library/Application Support/mirror' : '/var/lib/mirror'
}

/**
 * Returns the paths by the platform's conventions (XDG on Linux, https://specifications.freedesktop.org/basedir-spec/latest/), or below
 * `MIRROR_HOME`. `MIRROR_CONFIG` and `MIRROR_DATA` change only the configuration file and the data folder.
 */
export function mirrorPaths({ platform, env, homedir, cwd }: CommandEnvironment): MirrorPaths {
  const path = platform === 'win32' ? win32 : posix
  const resolveVariable = (name: string) => (env[name] ? path.resolve(cwd, env[name]) : undefined)
  const home = resolveVariable('MIRROR_HOME')
  const folders = home === undefined ? getPlatformFolders() : getFoldersBelow(home)
  const { stateDir } = folders
  return {
    configFile: resolveVariable('MIRROR_CONFIG') ?? path.join(folders.configDir, 'mirror.yaml'),
    configFileNamed: Boolean(env['MIRROR_CONFIG']),
    dataDir: resolveVariable('MIRROR_DATA') ?? folders.dataDir,
    stateDir,
    logFile: path.join(stateDir, 'mirror.log'),
    stateFile: path.join(stateDir, 'mirror.json'),
    tokenFile: path.join(stateDir, 'token'),
  }

  function getFoldersBelow(root: string) {
    return { configDir: root, dataDir: path.join(root, 'data'), stateDir: path.join(root, 'state') }
  }

  function getPlatformFolders() {
    if (platform === 'win32')
      return getFoldersBelow(path.join(env['LOCALAPPDATA'] || path.join(homedir, 'AppData', 'Local'), 'mirror'))
    if (platform === 'darwin') return getFoldersBelow(path.join(homedir, 'Library', 'Application Support', 'mirror'))
    const resolveXdgFolder = (name: string, fallback: string) => {
      const value = env[name]
      return path.join(value && path.isAbsolute(value) ? value : path.join(homedir, fallback), 'mirror')
    }
    return {
      configDir: resolveXdgFolder('XDG_CONFIG_HOME', '.config'),
      dataDir: resolveXdgFolder('XDG_DATA_HOME', '.local/share'),
      stateDir: resolveXdgFolder('XDG_STATE_HOME', '.local/state'),
    }
  }
}

type Environment = Readonly<Record<string, string | undefined>>

/** Names a variable, or a part of one, that mirror ignores as root. */
export interface IgnoredPath {
  readonly name: string
  /** Holds the path. */
  readonly value: string
  /** Gives the reason: `/home/alice belongs to alice`. */
  readonly why: string
  /** Holds the uid of the path's owner; undefined when its mode lets others write. */
  readonly owner: number | undefined
}

/** Holds an environment whose paths only root can change. */
interface RootPaths {
  readonly env: Readonly<Record<string, string | undefined>>
  readonly ignored: readonly IgnoredPath[]
}

/** Checks whether mirror must verify the owners of paths: as root, but not on Windows, and not in the mirror's container, which has no other users. */
export function mustCheckOwners({ platform, env }: Pick<CommandEnvironment, 'platform' | 'env'>): boolean {
  return isRoot() && platform !== 'win32' && !env['MIRROR_INSTANCE']
}

/**
 * Removes paths that other users can change from the environment of root, which `sudo -E` and `su -m` keep. Otherwise a user who can
 * change a configuration file, or a folder with programs, could act as root. HOME becomes root's home folder.
 */
export function toRootPaths(
  { env, cwd }: Pick<CommandEnvironment, 'env' | 'cwd'>,
  rootHome = getUserHome(0),
): RootPaths {
  const rootEnv: Record<string, string | undefined> = { ...env }
  const ignored: IgnoredPath[] = []
  const isSafe = (name: string, value: string) => {
    const found = findForeign(resolve(cwd, value))
    if (found) ignored.push({ name, value, why: describeForeign(found), owner: found.owner })
    return found === undefined
  }
  if (env['HOME'] && !isSafe('HOME', env['HOME'])) rootEnv['HOME'] = rootHome ?? '/root'
  for (const [name, value] of Object.entries(env)) {
    if (!value || !(pathVariables.has(name) || cloudPathVariable.test(name))) continue
    if (!value.split(getListSeparator(name)).every((path) => path === '' || isSafe(name, path))) delete rootEnv[name]
  }
  for (const name of ['DOCKER_HOST', 'CONTAINER_HOST']) {
    const socket = /^unix:\/\/(.+)$/.exec(env[name] ?? '')?.[1]
    if (socket && !isSafe(name, socket)) delete rootEnv[name]
  }
  const options = env['NODE_OPTIONS']
  if (options && !getOptionPaths(options).every((path) => isSafe('NODE_OPTIONS', path))) delete rootEnv['NODE_OPTIONS']
  const path = env['PATH']
  if (path) rootEnv['PATH'] = filterProgramFolders(path, isSafe)
  return { env: rootEnv, ignored }
}

/** Returns the paths in these variables that other users can change. */
export function findUnsafePaths(variables: Environment, cwd: string): readonly IgnoredPath[] {
  return toRootPaths({ env: variables, cwd }).ignored
}

function getListSeparator(name: string): string {
  return ['KUBECONFIG', 'NODE_PATH', 'SSL_CERT_DIR'].includes(name) ? ':' : '\0'
}

/** Returns the paths in options of Node: `--require /path`, `--import=file:///path`. */
function getOptionPaths(options: string): string[] {
  const words = options.split(/\s+/).map((word) => word.replace(/^--?[\w-]+=/, '').replace(/^file:\/\//, ''))
  return words.filter((word) => word.includes('/'))
}

function filterProgramFolders(path: string, isSafe: (name: string, value: string) => boolean): string {
  const folders = path.split(':')
  // Drop relative folders, because they depend on the working folder.
  const safeFolders = folders.filter(
    (folder) => systemFolders.includes(folder) || (isAbsolute(folder) && isSafe('PATH', folder)),
  )
  return (safeFolders.length > 0 ? safeFolders : systemFolders).join(':')
}

/** Returns the cache's folder below the data folder. */
export function getCacheRoot({ dataDir }: MirrorPaths): string {
  return join(dataDir, 'cache')
}

/** Returns the registry's folder below the data folder. */
export function getRegistryRoot({ dataDir }: MirrorPaths): string {
  return join(dataDir, 'registry')
}
