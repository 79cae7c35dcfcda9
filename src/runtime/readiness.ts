import { MirrorError, type ExitCode } from '../lib/errors.ts'
import type { Endpoints } from '../admin/state.ts'

/** What a detached mirror tells the command that started it, once, over the channel between them. */
export type ReadinessMessage =
  | { type: 'ready'; endpoints: Endpoints }
  | { type: 'failed'; message: string; hints: string[]; exit: ExitCode }

/** The half of `process` that talks to whoever started it. */
export type ParentChannel = Pick<NodeJS.Process, 'send' | 'connected'>

export function reportReady(parent: ParentChannel, endpoints: Endpoints): Promise<void> {
  return tell(parent, { type: 'ready', endpoints })
}

/** Says why there will be no mirror. What is no MirrorError is left to the log, where its stack is. */
export async function reportFailure(parent: ParentChannel, error: unknown): Promise<void> {
  if (!(error instanceof MirrorError)) return
  await tell(parent, { type: 'failed', message: error.message, hints: error.hints, exit: error.exit })
}

export function isReadinessMessage(value: unknown): value is ReadinessMessage {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined
  return type === 'ready' || type === 'failed'
}

/** A parent that has gone away meanwhile needs no answer. */
function tell(parent: ParentChannel, message: ReadinessMessage): Promise<void> {
  return new Promise((resolve) => {
    if (!parent.connected || parent.send === undefined) resolve()
    else parent.send(message, undefined, undefined, () => resolve())
  })
}
