import type { Config } from '../config/config.ts'
import { MirrorError } from '../lib/errors.ts'
import { runCommand, shellWord } from '../lib/process.ts'
import { describeFileFailure, tellFileFailure } from '../lib/system-errors.ts'
import { findPortHolder, type PortHolder } from '../daemon/start-errors.ts'
import { ListenError } from '../server/listen.ts'

type FindHolder = (port: number) => Promise<PortHolder | undefined>

/** The same failure with what the user needs to mend it: who holds the port and which flag moves it, which folder is closed. */
export async function explainStartFailure(
  error: unknown,
  config: Config,
  find: FindHolder = (port) => findPortHolder(port, { platform: process.platform, runCommand }),
): Promise<unknown> {
  if (error instanceof ListenError)
    return error.errno === 'EADDRINUSE' ? busyPort(error, config, find) : misplaced(error, config)
  if (error instanceof MirrorError) return error
  const failure = describeFileFailure(error)
  if (failure === undefined) return error
  // Those of the stores say so themselves: these lie in the state folder.
  return new MirrorError(
    tellFileFailure(error, failure) ?? `The mirror cannot use its files: ${(error as Error).message}.`,
    {
      hints: [...failure.next, 'MIRROR_HOME=<a folder of yours> mirror up'],
      cause: error,
    },
  )
}

async function busyPort(error: ListenError, config: Config, find: FindHolder): Promise<MirrorError> {
  const holder = await find(error.port)
  const { who, stop } = wordsFor(holder, error.port)
  const { name, key } = listenerOf(error, config)
  const other = error.port + 1000 <= 65_535 ? error.port + 1000 : error.port - 1000
  return new MirrorError(`Port ${error.port} (${name}) is already in use by ${who}.`, {
    hints: [`mirror up --${name}-port ${other}`, ...stop, `Set another port in mirror.yaml: ${key}`],
    cause: error,
  })
}

function wordsFor(holder: PortHolder | undefined, port: number): { who: string; stop: string[] } {
  if (holder === undefined) return { who: 'another program', stop: whichProgram(port) }
  const { pid, command, mirror } = holder
  if (mirror === undefined) return { who: `${command} (pid ${pid})`, stop: [`Stop ${command} (pid ${pid})`] }
  if (mirror === 'unknown') return { who: `another mirror (pid ${pid})`, stop: [] }
  if (mirror === 'usual')
    return {
      who: `another mirror (pid ${pid}, without MIRROR_HOME)`,
      stop: ['env -u MIRROR_HOME mirror down   (stops that mirror)'],
    }
  const home = `MIRROR_HOME=${shellWord(mirror.home)}`
  return { who: `another mirror (pid ${pid}, ${home})`, stop: [`${home} mirror down   (stops that mirror)`] }
}

/** Root sees the programs of all users. */
function whichProgram(port: number): string[] {
  if (process.platform === 'win32') return [`netstat -ano | findstr :${port}   (shows which program it is)`]
  const asked = process.platform === 'linux' ? `ss -ltnp 'sport = :${port}'` : `lsof -nP -iTCP:${port} -sTCP:LISTEN`
  return [`sudo ${asked}   (shows which program it is)`]
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
