import { lstatSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { type LeftOut, looksAtOwners, mirrorPaths, othersPlaces, type Surroundings } from '../config/paths.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { describeForeign, findForeign, isRoot, userName } from '../lib/ownership.ts'
import { shellWord } from '../lib/process.ts'

/**
 * Throws a MirrorError (usage) when root was told, by a variable or a flag, to use settings or files of the mirror that others can
 * change: others in their place are not what was meant. The same for root's own files where others can change them.
 */
export function refuseOthersPlaces(surroundings: Surroundings): void {
  if (!looksAtOwners(surroundings)) return
  const { env, cwd, callers } = surroundings
  const named = othersPlaces({ ...callers?.env, ...env }, cwd).find(({ name }) => name.startsWith('MIRROR_'))
  if (named) throw refusal(`${named.name}=${named.value}`, named)
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  for (const path of [configFile, dataDir, stateDir]) refuseOthersFile(path, path, surroundings)
}

/** The same for a file or folder that an argument names; `what`: as the user has written it, `--file kind.yaml`. */
export function refuseOthersFile(
  what: string,
  path: string,
  surroundings: Pick<Surroundings, 'platform' | 'env' | 'cwd'>,
): void {
  if (!looksAtOwners(surroundings)) return
  const found = findForeign(resolve(surroundings.cwd, path))
  if (found) throw refusal(what, { why: describeForeign(found), owner: found.owner })
}

/** The same for those of these flags that are given. */
export function refuseOthersFlags<Name extends string>(
  flags: Readonly<Partial<Record<Name, string | undefined>>>,
  names: readonly Name[],
  surroundings: Surroundings,
): void {
  for (const name of names) {
    const path = flags[name]
    if (path !== undefined) refuseOthersFile(`--${name} ${path}`, path, surroundings)
  }
}

/** The same for the state folder, once it is there: where everyone can write, another user may have been quicker. */
export function refuseOthersState(stateDir: string): void {
  refuseOthersFile(stateDir, stateDir, { platform: process.platform, env: process.env, cwd: process.cwd() })
}

/**
 * Why an ordinary user may not use a file of their own mirror, where that is root's: older versions left such files under
 * `sudo -E`. Undefined for any other failure.
 */
export function explainRootsFile(failure: Error, surroundings: Surroundings): MirrorError | undefined {
  const error = failure instanceof MirrorError ? failure.cause : failure
  const path = ['EACCES', 'EPERM'].includes(errnoOf(error) ?? '') && (error as NodeJS.ErrnoException).path
  if (!path || isRoot() || surroundings.platform === 'win32') return undefined
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  const isOurs = [dirname(configFile), dataDir, stateDir].some((one) => `${path}/`.startsWith(`${one}/`))
  const seen = isOurs ? nearestVisible(path) : undefined
  // A file that is ours can be in a folder that is not; the home folder itself is somebody else's business.
  const roots =
    seen && [seen, dirname(seen)].find((one) => one.length > surroundings.homedir.length && ownerOf(one) === 0)
  if (!roots) return undefined
  return new MirrorError(`No permission to use ${path}: root owns ${roots}.`, {
    hints: [`sudo chown -R "$(id -un)": ${shellWord(roots)}   (mirror as root may have left it)`],
    cause: error,
  })
}

/** The path, or the folder above it, that this user can see. */
function nearestVisible(path: string): string {
  let at = path
  while (ownerOf(at) === undefined && at !== dirname(at)) at = dirname(at)
  return at
}

/** Undefined for what is not there, and for what this user may not look at. */
function ownerOf(path: string): number | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })?.uid
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

/** How the command is run by the user whose files root leaves alone. */
export function asWhom(leftOut: readonly Pick<LeftOut, 'owner'>[]): string {
  const owner = leftOut.find((one) => one.owner !== undefined)?.owner
  return owner === undefined ? 'without sudo' : `without sudo, as ${userName(owner)}`
}

function refusal(what: string, { why, owner }: Pick<LeftOut, 'why' | 'owner'>): MirrorError {
  return new MirrorError(
    `As root, mirror uses nothing that other users can change, and they can change ${what}: ${why}.`,
    {
      exit: exitCode.usage,
      hints: [
        `Run the command ${asWhom([{ owner }])}`,
        "Set MIRROR_HOME to a folder that is root's, as each folder above it is: MIRROR_HOME=/root/mirror",
      ],
    },
  )
}
