import type { MirrorPaths } from '../config/paths.ts'
import { makeFolder } from '../lib/fs.ts'
import { startDetached } from '../daemon/spawn.ts'
import { limitLog } from '../runtime/limit-log.ts'
import type { StartedMirror } from '../admin/state.ts'
import { serveArguments } from '../runtime/serve-arguments.ts'
import { refuseOthersState } from '../admin/sudo.ts'

export interface ProcessRequest {
  /** bin/run.js */
  readonly program: string
  readonly paths: MirrorPaths
  readonly env: Readonly<Record<string, string | undefined>>
  readonly signal: AbortSignal
}

/** An answer that has not come by then will not come. */
const readyWithinMs = 60_000

/** Starts the server as a process of its own, and returns when it answers. Throws a MirrorError when it does not. */
export async function startProcess({ program, paths, env, signal }: ProcessRequest): Promise<StartedMirror> {
  await makeFolder(paths.stateDir)
  refuseOthersState(paths.stateDir)
  await limitLog(paths.logFile)
  return startDetached({
    args: serveArguments(program),
    env: { ...env },
    logFile: paths.logFile,
    timeoutMs: readyWithinMs,
    signal,
  })
}
