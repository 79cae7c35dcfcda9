import { constants, lstatSync } from 'node:fs'
import { access, realpath } from 'node:fs/promises'
import { delimiter, dirname, isAbsolute, join, resolve } from 'node:path'
import { type IgnoredPath, mustCheckOwners, mirrorPaths, findUnsafePaths } from '../config/paths.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { pathExists } from '../lib/fs.ts'
import { describeForeign, findForeign, isRoot, getUserName } from '../lib/ownership.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { quoteShellWord, type CommandEnvironment } from '../lib/process.ts'

/**
 * Throws a MirrorError (usage) when a variable or a flag makes root use settings or files of the mirror that others can change,
 * because using others instead is not what was meant. Refuses root's own files as well where others can change them.
 */
export function refuseForeignPaths(surroundings: CommandEnvironment): void {
  if (!mustCheckOwners(surroundings)) return
  const { env, cwd, callers } = surroundings
  const unsafe = findUnsafePaths({ ...callers?.env, ...env }, cwd).find(({ name }) => name.startsWith('MIRROR_'))
  if (unsafe) throw createForeignFileError(`${unsafe.name}=${unsafe.value}`, unsafe)
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  for (const path of [configFile, dataDir, stateDir]) refuseForeignFile(path, path, surroundings)
}

/** Refuses a file or folder that an argument names in the same way; `what`: as the user wrote it, `--file kind.yaml`. */
export function refuseForeignFile(
  what: string,
  path: string,
  surroundings: Pick<CommandEnvironment, 'platform' | 'env' | 'cwd'>,
): void {
  if (!mustCheckOwners(surroundings)) return
  const found = findForeign(resolve(surroundings.cwd, path))
  if (found) throw createForeignFileError(what, { why: describeForeign(found), owner: found.owner })
}

/** Refuses the paths of the given flags in the same way. */
export function refuseForeignFlags<Name extends string>(
  flags: Readonly<Partial<Record<Name, string | undefined>>>,
  names: readonly Name[],
  surroundings: CommandEnvironment,
): void {
  for (const name of names) {
    const path = flags[name]
    if (path !== undefined) refuseForeignFile(`--${name} ${path}`, path, surroundings)
  }
}

/**
 * Refuses the state folder in the same way after it was created: where everyone can write, another user may have created it
 * first.
 */
export function refuseForeignState(stateDir: string): void {
  refuseForeignFile(stateDir, stateDir, { platform: process.platform, env: process.env, cwd: process.cwd() })
}

/**
 * Explains why an ordinary user may not use a file of their own mirror when root owns it: older versions left such files under
 * `sudo -E`. Returns undefined for any other failure.
 */
export function explainRootOwnedFile(failure: Error, surroundings: CommandEnvironment): MirrorError | undefined {
  const error = failure instanceof MirrorError ? failure.cause : failure
  const path = ['EACCES', 'EPERM'].includes(getErrno(error) ?? '') && (error as NodeJS.ErrnoException).path
  if (!path || isRoot() || surroundings.platform === 'win32') return undefined
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  const belongsToMirror = [dirname(configFile), dataDir, stateDir].some((one) => `${path}/`.startsWith(`${one}/`))
  const visible = belongsToMirror ? findNearestVisible(path) : undefined
  // Checks the folder too, because a file of this user can be in a folder of root. Leaves out the home folder and those above
  // it.
  const rootOwned =
    visible &&
    [visible, dirname(visible)].find((one) => one.length > surroundings.homedir.length && readOwner(one) === 0)
  if (!rootOwned) return undefined
  return new MirrorError(`No permission to use ${path}: root owns ${rootOwned}.`, {
    hints: [`sudo chown -R "$(id -un)": ${quoteShellWord(rootOwned)}   (mirror as root may have left it)`],
    cause: error,
  })
}

/** Returns the path, or the nearest folder above it that this user can see. */
function findNearestVisible(path: string): string {
  let at = path
  while (readOwner(at) === undefined && at !== dirname(at)) at = dirname(at)
  return at
}

/** Returns undefined for a path that does not exist, or that this user may not see. */
function readOwner(path: string): number | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })?.uid
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

/** Describes how the user whose files root ignores runs the command. */
export function describeInvoker(ignored: readonly Pick<IgnoredPath, 'owner'>[]): string {
  const owner = ignored.find((one) => one.owner !== undefined)?.owner
  return owner === undefined ? 'without sudo' : `without sudo, as ${getUserName(owner)}`
}

function createForeignFileError(what: string, { why, owner }: Pick<IgnoredPath, 'why' | 'owner'>): MirrorError {
  return new MirrorError(
    `As root, mirror uses nothing that other users can change, and they can change ${what}: ${why}.`,
    {
      exit: exitCode.usage,
      hints: [
        `Run the command ${describeInvoker([{ owner }])}`,
        'Set MIRROR_HOME to a folder that root owns, like each folder above it: MIRROR_HOME=/root/mirror',
      ],
    },
  )
}

/**
 * Holds the variables that sudo removes and root needs to find the same engine and files. Root ignores them where others can change
 * the path.
 */
const trustedVariables = ['DOCKER_HOST', 'CONTAINERS_REGISTRIES_CONF'] as const
/** Holds the variables that root needs to find the user's mirror, and does not trust otherwise. */
const locatingVariables = ['MIRROR_HOME', 'XDG_STATE_HOME'] as const

/** Overrides the programs for tests. */
interface Programs {
  readonly execPath?: string
  readonly program?: string
  readonly folders?: readonly string[]
}

/**
 * Renders the command line that runs mirror with these arguments as root. sudo looks for programs in its own folders
 * (`secure_path`), so a mirror or Node elsewhere, installed by nvm, needs the user's PATH. What is on neither is named by its path.
 */
export async function renderRootCommand(
  { env, platform, cwd, callers }: Pick<CommandEnvironment, 'env' | 'platform' | 'cwd' | 'callers'>,
  args: readonly string[],
  { execPath, program, folders }: Programs = {},
): Promise<string> {
  const words = args.map(quoteShellWord)
  // Omits sudo on Windows, where an administrator opens a terminal.
  const isRoot = process.geteuid?.() === 0 && env['SUDO_UID'] === undefined
  if (platform === 'win32' || isRoot) return ['mirror', ...words].join(' ')
  const search = folders ?? (await findSecurePath())
  const [node, run] = [execPath ?? process.execPath, program ?? join(findPackageRoot(), 'bin', 'run.js')]
  const isFoundIn = async (searched: readonly string[]) =>
    (await isFirstInFolders('mirror', run, searched)) && (await isFirstInFolders('node', node, searched))
  const isFound = await isFoundIn(search)
  // Search the PATH that root was given, because root's own has no folders of the user.
  const path = (callers?.env ?? env)['PATH'] ?? ''
  const isOnPath = !isFound && (await isFoundIn(path.split(delimiter).filter(isAbsolute)))
  const mirror = isFound || isOnPath ? ['mirror'] : [quoteShellWord(node), quoteShellWord(run)]
  const passedVariables = [...trustedVariables.filter((name) => isTrusted(name, env[name], cwd)), ...locatingVariables]
  const settings = passedVariables.flatMap((name) => (env[name] ? [`${name}=${quoteShellWord(env[name])}`] : []))
  const variables = isOnPath ? ['"PATH=$PATH"', ...settings] : settings
  return ['sudo', ...(variables.length > 0 ? ['env', ...variables] : []), ...mirror, ...words].join(' ')
}

/** Returns whether sudo ran `env PATH=…`, as in the command line for root that mirror prints: then root knows of the user's folders. */
export function isPathPassedOnPurpose(env: CommandEnvironment['env']): boolean {
  return /^\S*\benv (?:.* )?PATH=/.test(env['SUDO_COMMAND'] ?? '')
}

/** Returns whether root would use the path in a variable (docs/decisions/0020). */
function isTrusted(name: string, value: string | undefined, cwd: string): boolean {
  try {
    return findUnsafePaths({ [name]: value }, cwd).length === 0
  } catch (error) {
    // Trusts a path in a folder of root that this user may not read.
    if (getErrno(error) === 'EACCES') return true
    throw error
  }
}

/** Returns the usual `secure_path` of distributions, because only root may read sudoers. */
async function findSecurePath(): Promise<string[]> {
  const system = ['/usr/sbin', '/usr/bin', '/sbin', '/bin']
  return (await pathExists('/etc/redhat-release')) ? system : ['/usr/local/sbin', '/usr/local/bin', ...system]
}

/** Returns whether the first program of that name in these folders is this file. */
async function isFirstInFolders(name: string, file: string, folders: readonly string[]): Promise<boolean> {
  for (const folder of folders) {
    const path = join(folder, name)
    try {
      await access(path, constants.X_OK)
    } catch {
      continue // Goes on to the next folder, as the shell does.
    }
    return (await realpath(path)) === (await realpath(file))
  }
  return false
}
