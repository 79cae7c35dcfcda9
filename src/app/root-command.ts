import { constants } from 'node:fs'
import { access, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import { othersPlaces, type Surroundings } from '../config/paths.ts'
import { errnoOf } from '../lib/errors.ts'
import { isThere } from '../lib/fs.ts'
import { packageRoot } from '../lib/package-root.ts'
import { shellWord } from '../lib/process.ts'

/** What sudo takes away, and root needs to find the same engine and files; root leaves it out where others can change the place. */
const obeyed = ['DOCKER_HOST', 'CONTAINERS_REGISTRIES_CONF'] as const
/** The same to find the same mirror: root looks there for the user's mirror, too, and obeys nothing that it finds. */
const lookedAt = ['MIRROR_HOME', 'XDG_STATE_HOME'] as const

/** Where to look, for tests. */
interface Programs {
  readonly execPath?: string
  readonly program?: string
  readonly folders?: readonly string[]
}

/**
 * The command line by which this user has root run mirror with these arguments. sudo looks for programs in folders of its own
 * (`secure_path`), so that a mirror or a Node elsewhere, by nvm or npx, is named by its path.
 */
export async function rootCommand(
  { env, platform, cwd }: Pick<Surroundings, 'env' | 'platform' | 'cwd'>,
  args: readonly string[],
  { execPath, program, folders }: Programs = {},
): Promise<string> {
  const words = args.map(shellWord)
  // An administrator there starts a terminal, not a command.
  const isRoot = process.geteuid?.() === 0 && env['SUDO_UID'] === undefined
  if (platform === 'win32' || isRoot) return ['mirror', ...words].join(' ')
  const search = folders ?? (await securePath())
  const [node, run] = [execPath ?? process.execPath, program ?? join(packageRoot(), 'bin', 'run.js')]
  const isFound = (await isFirst('mirror', run, search)) && (await isFirst('node', node, search))
  const mirror = isFound ? ['mirror'] : [shellWord(node), shellWord(run)]
  const carried = [...obeyed.filter((name) => wouldObey(name, env[name], cwd)), ...lookedAt]
  const variables = carried.flatMap((name) => (env[name] ? [`${name}=${shellWord(env[name])}`] : []))
  return ['sudo', ...(variables.length > 0 ? ['env', ...variables] : []), ...mirror, ...words].join(' ')
}

/** Whether root would use what a variable names (docs/decisions/0020). */
function wouldObey(name: string, value: string | undefined, cwd: string): boolean {
  try {
    return othersPlaces({ [name]: value }, cwd).length === 0
  } catch (error) {
    // It lies in a folder of root's that this user may not look into.
    if (errnoOf(error) === 'EACCES') return true
    throw error
  }
}

/** As distributions have it; sudoers itself may be read by root only. */
async function securePath(): Promise<string[]> {
  const system = ['/usr/sbin', '/usr/bin', '/sbin', '/bin']
  return (await isThere('/etc/redhat-release')) ? system : ['/usr/local/sbin', '/usr/local/bin', ...system]
}

/** Whether the first program of that name in these folders is this one. */
async function isFirst(name: string, file: string, folders: readonly string[]): Promise<boolean> {
  for (const folder of folders) {
    const path = join(folder, name)
    try {
      await access(path, constants.X_OK)
    } catch {
      continue // The shell goes on to the next folder, too.
    }
    return (await realpath(path)) === (await realpath(file))
  }
  return false
}
