import { resolve } from 'node:path'
import { mirrorPaths, type Surroundings } from '../config/paths.ts'
import { looksAtOwners, othersPlaces, type LeftOut } from '../config/roots-places.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { describeForeign, findForeign, userName } from '../lib/root-owned.ts'

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
        "Or set MIRROR_HOME to a folder that is root's, as each folder above it is: MIRROR_HOME=/root/mirror",
      ],
    },
  )
}
