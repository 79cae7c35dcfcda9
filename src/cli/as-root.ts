import { homedir } from 'node:os'
import { asWhom } from '../admin/sudo.ts'
import { type LeftOut, looksAtOwners, type Surroundings, toRootsPlaces } from '../config/paths.ts'
import { errnoOf } from '../lib/errors.ts'

let left: { readonly callers: Surroundings; readonly leftOut: readonly LeftOut[] } | undefined

/**
 * Called once, when the program starts. As root: takes out of this process's environment, and so out of that of every program it
 * starts, each place that others than root can change.
 */
export function leaveOthersPlaces(program: Pick<NodeJS.Process, 'platform' | 'env' | 'cwd'>): void {
  if (!looksAtOwners(program)) return
  const { platform, env } = program
  const callers = { platform, env: { ...env }, homedir: homedir(), cwd: folderOf(program) }
  const { env: own, leftOut } = toRootsPlaces(callers)
  if (leftOut.length > 0) left = { callers, leftOut }
  for (const name of Object.keys(env)) {
    if (own[name] === undefined) delete env[name]
    else env[name] = own[name]
  }
}

/** In a folder that was removed nothing is found by a relative path, whatever that is taken to start from. */
function folderOf({ cwd }: Pick<NodeJS.Process, 'cwd'>): string {
  try {
    return cwd()
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
    return '/'
  }
}

/** The surroundings as they were before places were taken out; undefined where none was. */
export function callersSurroundings(): Surroundings | undefined {
  return left?.callers
}

/** What root leaves alone, and how to use it all the same; undefined where there is nothing. */
export function describeLeftOut(env: NodeJS.ProcessEnv): string | undefined {
  if (left === undefined) return undefined
  const lines = left.leftOut.map(({ name, value, why }) => {
    const instead = name === 'HOME' ? `; ${env['HOME']} takes its place` : ''
    return `  ${name}=${value}   (${why}${instead})`
  })
  return [
    'As root, mirror uses nothing that other users can change. Not used:',
    ...lines,
    `To use it, run the command ${asWhom(left.leftOut)}. To keep root's files elsewhere, set MIRROR_HOME to a folder of root's.`,
  ].join('\n')
}
