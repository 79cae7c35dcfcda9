import { mirrorPaths, type MirrorPaths, type Surroundings } from '../config/paths.ts'
import type { MirrorState } from '../runtime/runtime.ts'
import { findRunning } from '../runtime/state-file.ts'
import type { InvokingUser } from './invoking-user.ts'

/** A running mirror, and whose it is. */
export interface MirrorHere {
  readonly running: MirrorState
  readonly paths: MirrorPaths
  /** Whose it is when it is not ours: under sudo, that of the user who called it. */
  readonly user: InvokingUser | undefined
}

/** Our own running mirror; under sudo, when root runs none, that of the user who called it. */
export async function findMirrorHere(surroundings: Surroundings): Promise<MirrorHere | undefined> {
  const paths = mirrorPaths(surroundings)
  const user = await invokingUser(surroundings)
  if (user === undefined) return findOwn(paths)
  const { isOnlyRoots } = await import('../lib/root-owned.ts')
  const isRoots = await isOnlyRoots(paths.stateFile)
  const own = isRoots ? await findOwn(paths) : undefined
  // With a home of root's own that was named, nothing else is meant.
  if (own !== undefined || (isRoots && surroundings.env['MIRROR_HOME'])) return own
  const { findRunningOf } = await import('./users-mirror.ts')
  const { home, uid } = user
  const usual = mirrorPaths({ ...surroundings, env: {}, homedir: home })
  for (const candidate of [paths, usual]) {
    const running = await findRunningOf(candidate.stateFile, uid)
    if (running !== undefined) return { running, paths: candidate, user }
  }
  return undefined
}

async function findOwn(paths: MirrorPaths): Promise<MirrorHere | undefined> {
  const running = await findRunning(paths.stateFile)
  return running && { running, paths, user: undefined }
}

/** What it takes to find out who called sudo is loaded where somebody has. */
async function invokingUser(surroundings: Surroundings): Promise<InvokingUser | undefined> {
  const { env } = surroundings
  if (env['SUDO_UID'] === undefined && env['DOAS_USER'] === undefined) return undefined
  const { findInvokingUser } = await import('./invoking-user.ts')
  return findInvokingUser(surroundings)
}
