import { looksAtOwners, mirrorPaths, type MirrorPaths, type Surroundings } from '../config/paths.ts'
import { isOnlyRoots } from '../lib/ownership.ts'
import type { MirrorState } from '../runtime/runtime.ts'
import { findRunning } from '../admin/state.ts'
import { findInvokingUser, type InvokingUser } from './invoking-user.ts'
import { findRunningOf } from './users-mirror.ts'

/** A running mirror, and whose it is. */
export interface MirrorHere {
  readonly running: MirrorState
  readonly paths: MirrorPaths
  /** Whose it is when it is not ours: that of the user who has become root. */
  readonly user: InvokingUser | undefined
}

/**
 * Our own running mirror; when root runs none, that of the user who has become root. Where MIRROR_HOME names a home that root
 * leaves out, only the user's mirror with that home: no other one was meant.
 */
export async function findMirrorHere(surroundings: Surroundings): Promise<MirrorHere | undefined> {
  const paths = mirrorPaths(surroundings)
  const callers = surroundings.callers ?? surroundings
  const isLeftOut = Boolean(callers.env['MIRROR_HOME']) && !surroundings.env['MIRROR_HOME']
  const isRoots = !isLeftOut && (!looksAtOwners(surroundings) || isOnlyRoots(paths.stateFile))
  const own = isRoots ? await findOwn(paths) : undefined
  const user = own === undefined ? await invokingUser(surroundings) : undefined
  if (user === undefined) return own
  // With a home of root's own that was named, nothing else is meant.
  if (isRoots && surroundings.env['MIRROR_HOME']) return undefined
  const { home, uid } = user
  const usual = mirrorPaths({ ...surroundings, env: {}, homedir: home })
  for (const candidate of [mirrorPaths(callers), ...(isLeftOut ? [] : [usual])]) {
    const running = await findRunningOf(candidate.stateFile, uid)
    if (running !== undefined) return { running, paths: candidate, user }
  }
  return undefined
}

async function findOwn(paths: MirrorPaths): Promise<MirrorHere | undefined> {
  const running = await findRunning(paths.stateFile)
  return running && { running, paths, user: undefined }
}

async function invokingUser(surroundings: Surroundings): Promise<InvokingUser | undefined> {
  if (!looksAtOwners(surroundings)) return undefined
  return findInvokingUser(surroundings)
}
