import type { Config } from '../config/config.ts'
import { MirrorError } from '../lib/errors.ts'
import { describeFileFailure, tellFileFailure } from '../lib/file-failure.ts'
import { runCommand } from '../lib/run-command.ts'
import { findPortHolder } from '../runtime/port-holder.ts'
import { ListenError } from '../server/listen.ts'

/** The same failure with what the user needs to mend it: who holds the port and which flag moves it, which folder is closed. */
export async function explainStartFailure(error: unknown, config: Config): Promise<unknown> {
  if (error instanceof ListenError)
    return error.errno === 'EADDRINUSE' ? busyPort(error, config) : misplaced(error, config)
  if (error instanceof MirrorError) return error
  const failure = describeFileFailure(error)
  if (failure === undefined) return error
  // Those of the stores say so themselves: these lie in the state folder.
  return new MirrorError(tellFileFailure(error) ?? `The mirror cannot use its files: ${(error as Error).message}.`, {
    hints: [...failure.next, 'MIRROR_HOME=<a folder of yours> mirror up'],
    cause: error,
  })
}

async function busyPort(error: ListenError, config: Config): Promise<MirrorError> {
  const holder = await findPortHolder(error.port, { platform: process.platform, runCommand })
  const who = holder === undefined ? 'another program' : `${holder.command} (pid ${holder.pid})`
  const { name, key } = listenerOf(error, config)
  const other = error.port + 1000 <= 65_535 ? error.port + 1000 : error.port - 1000
  return new MirrorError(`Port ${error.port} (${name}) is already in use by ${who}.`, {
    hints: [`mirror up --${name}-port ${other}`, `Stop ${who}`, `Set another port in mirror.yaml: ${key}`],
    cause: error,
  })
}

function misplaced(error: ListenError, config: Config): MirrorError {
  const { name, key } = listenerOf(error, config)
  const hint =
    error.errno === 'EACCES'
      ? `mirror up --${name}-port ${error.port + 5000}`
      : `mirror.yaml: ${key}: ["127.0.0.1:${error.port}"]`
  return new MirrorError(error.message, { hints: [hint], cause: error })
}

/** Whose address it is. */
function listenerOf({ host, port }: ListenError, config: Config): { name: string; key: string } {
  const names = ['cache', 'registry', 'admin'] as const
  const name = names.find((name) => config[name].listen.some((at) => at.host === host && at.port === port)) ?? 'cache'
  return { name, key: `${name}.listen` }
}
