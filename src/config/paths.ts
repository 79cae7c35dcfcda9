import { posix, win32 } from 'node:path'

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

/** What a command finds around it. */
export interface Surroundings {
  /** As `process.platform`. */
  platform: string
  env: Readonly<Record<string, string | undefined>>
  /** The user's home folder. */
  homedir: string
  /** What relative paths in `env` start from. */
  cwd: string
  /**
   * As root: these before every place that others can change was taken out. They tell only whose mirror may be meant, and are
   * never obeyed.
   */
  callers?: Surroundings | undefined
}

/**
 * The platform's places (XDG on Linux, https://specifications.freedesktop.org/basedir-spec/latest/), or all below `MIRROR_HOME`.
 * `MIRROR_CONFIG` and `MIRROR_DATA` move the configuration file and the data folder alone.
 */
export function mirrorPaths({ platform, env, homedir, cwd }: Surroundings): MirrorPaths {
  const path = platform === 'win32' ? win32 : posix
  const named = (name: string) => (env[name] ? path.resolve(cwd, env[name]) : undefined)
  const home = named('MIRROR_HOME')
  const places = home === undefined ? platformPlaces() : below(home)
  const { stateDir } = places
  return {
    configFile: named('MIRROR_CONFIG') ?? path.join(places.configDir, 'mirror.yaml'),
    configFileNamed: Boolean(env['MIRROR_CONFIG']),
    dataDir: named('MIRROR_DATA') ?? places.dataDir,
    stateDir,
    logFile: path.join(stateDir, 'mirror.log'),
    stateFile: path.join(stateDir, 'mirror.json'),
    tokenFile: path.join(stateDir, 'token'),
  }

  function below(root: string) {
    return { configDir: root, dataDir: path.join(root, 'data'), stateDir: path.join(root, 'state') }
  }

  function platformPlaces() {
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
