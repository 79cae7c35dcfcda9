import type { MirrorPaths } from '../config/paths.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { createAdminClient, type AdminClient } from '../runtime/admin-client.ts'
import type { MirrorState } from '../runtime/runtime.ts'
import { findRunning } from '../runtime/state-file.ts'
import type { StatusReport } from '../server/admin-api.ts'

/** What the running mirror says about itself; undefined when none runs. */
export async function mirrorStatus(paths: MirrorPaths): Promise<StatusReport | undefined> {
  const running = await findRunning(paths.stateFile)
  return running && adminOf(running, paths).status()
}

/** The admin client of a running mirror. */
export function adminOf(running: MirrorState, paths: MirrorPaths): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(`The mirror (pid ${running.pid}) has no admin address.`, {
      exit: exitCode.missing,
      hints: ['mirror down && mirror up'],
    })
  return createAdminClient({ url, tokenFile: paths.tokenFile, timeoutMs: 10_000 })
}
