import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { AdminClient } from '../../runtime/admin-client.ts'
import { findRunning } from '../../runtime/state-file.ts'
import { adminOf } from '../mirror-status.ts'
import type { ClientPlace } from './client-adapter.ts'

export interface CheckResult {
  /** The mirror was asked for the image, and the client has it. */
  readonly seen: boolean
  /** The mirror was asked, whatever became of it. */
  readonly asked: boolean
  /** What the client said when its pull failed. */
  readonly failed: string | undefined
  /** `docker.io/mirror-check/3f…:check` */
  readonly image: string
  readonly reasons: ClientPlace['reasons']
}

/**
 * Proves by a pull that a client comes through the running mirror: the mirror offers an image that nobody else has, the client
 * pulls it, and the mirror says whether it was asked. Throws MirrorError when no mirror runs, or this client cannot be made
 * to pull.
 */
export async function checkClient(
  surroundings: Surroundings,
  client: string,
  place: ClientPlace,
): Promise<CheckResult> {
  if (!place.pull)
    throw new MirrorError(`${client} cannot be made to pull from here, so there is nothing to see.`, {
      exit: exitCode.usage,
      hints: ['mirror logs -f   (while you pull by it)'],
    })
  const admin = await adminToCheckBy(surroundings)
  const { id, repository, tag } = await admin.offerCanary()
  const image = `docker.io/${repository}:${tag}`
  let failed: string | undefined
  let seen: Record<string, number>
  try {
    failed = (await place.pull(image)).failed
  } finally {
    seen = (await admin.endCanary(id)).seen
  }
  const asked = Object.keys(seen).length > 0
  return { seen: asked && failed === undefined, asked, failed, image, reasons: place.reasons }
}

/** The mirror that a pull is to be seen by. Throws MirrorError (notRunning) when there is none. */
export async function adminToCheckBy(surroundings: Surroundings): Promise<AdminClient> {
  const paths = mirrorPaths(surroundings)
  const running = await findRunning(paths.stateFile)
  if (running !== undefined) return adminOf(running, paths)
  throw new MirrorError('No mirror is running that a pull could be seen by.', {
    exit: exitCode.notRunning,
    hints: ['mirror up'],
  })
}
