import { fstatSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { ConfiguredClient, DoctorReport } from '../admin/activity.ts'
import { parseDoctorReport } from '../admin/dashboard/findings.ts'
import { recordLastSeen } from '../admin/find-mirror.ts'
import { type Endpoints, findReachableMirror, keepState, type KeptState, removeVolumeMarker } from '../admin/state.ts'
import { type Config, hashConfig, toConfigDocument } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { createDeferred } from '../lib/async.ts'
import { describeFailure, getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { parseObject } from '../lib/json.ts'
import { getProcessIdentity, runCommand, type CommandEnvironment } from '../lib/process.ts'
import { openHostHandoff, removePredecessorExports } from './container/handoff.ts'
import { checkDescriptorLimit } from './limits.ts'
import { createLogger } from './logging.ts'
import { reportFailure, reportReady } from './spawn.ts'
import { explainStartFailure } from './start-errors.ts'
import { startMirror } from './start.ts'

const doctorTimeoutMs = 30_000

export interface ServeRequest {
  surroundings: CommandEnvironment
  version: string
  /** Takes each line of the log; default: stderr. */
  writeLog?: (line: string) => void
  /** Lists the clients of this machine that mirror configured. A mirror in a container cannot know them. */
  listConfigured: () => Promise<readonly ConfiguredClient[]>
  /** Is called when the mirror answers. */
  onReady?: (endpoints: Endpoints) => void
}

/**
 * Serves in this process until a signal or a request to the admin listener ends it, then drains. Reports over the channel to the
 * parent process that it is ready, or why it is not.
 */
export async function serveMirror(request: ServeRequest): Promise<void> {
  const paths = mirrorPaths(request.surroundings)
  const handoff = openHostHandoff(request.surroundings.env)
  const runtime = handoff ? 'container' : 'process'
  const ending = new Ending()
  let config: Config | undefined
  let stopSurviving: (() => void) | undefined
  try {
    checkDescriptorLimit()
    config = await loadConfig({ ...request.surroundings, paths })
    const hashes = hashConfig(config, paths.dataDir)
    const rendered = toConfigDocument(config)
    await refuseSecond(paths)
    await recordLastSeen(paths)
    const logFile = (await isStderr(paths.logFile)) ? paths.logFile : undefined
    const logger = await createLogger({ level: config.log.level, write: request.writeLog, file: logFile })
    stopSurviving = surviveFailures(process, { logger })
    const startedAt = new Date().toISOString()
    const identity = await getProcessIdentity(process.pid)

    let kept: KeptState | undefined
    const mirror = await startMirror(config, {
      home: paths,
      version: request.version,
      runtime,
      logger,
      handoff,
      onStoreLost: () => endAtOnce(logger),
      onStopRequested: () => ending.begin('asked to'),
      runDoctor: handoff ? undefined : () => runDoctor(request.surroundings),
      listConfigured: handoff ? undefined : request.listConfigured,
      onEndpointsChanged: () => kept?.update(),
    })
    try {
      kept = keepState({
        stateFile: paths.stateFile,
        logger,
        getState: () => ({
          pid: process.pid,
          processIdentity: identity,
          version: request.version,
          runtime,
          startedAt,
          configHashes: hashes,
          endpoints: mirror.endpoints,
          logFile,
          served: handoff ? undefined : { config: { ...rendered }, dataDir: paths.dataDir },
        }),
      })
      await kept.written
      const stopCleanup = handoff && removePredecessorExports(handoff, logger)
      await removeVolumeMarker(paths.stateDir)
      await reportReady(process, mirror.endpoints)
      request.onReady?.(mirror.endpoints)
      logger.info({ reason: await ending.begun }, 'the mirror is ending')
      stopCleanup?.()
      await mirror.close()
      await kept.remove()
    } catch (error) {
      await mirror.close()
      throw error
    }
  } catch (error) {
    const explained = config === undefined ? error : await explainStartFailure(error, config)
    await reportFailure(process, explained)
    throw explained
  } finally {
    ending.dispose()
    stopSurviving?.()
  }
}

/** Ends this process: the first request to end drains, a second signal ends at once. */
class Ending {
  readonly #reason = createDeferred<string>()
  readonly begun = this.#reason.promise
  #hasBegun = false
  readonly #onSignal = (signal: NodeJS.Signals) => {
    if (this.#hasBegun) process.exit(130)
    this.begin(signal)
  }

  constructor() {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, this.#onSignal)
  }

  begin(reason: string): void {
    this.#hasBegun = true
    this.#reason.resolve(reason)
  }

  dispose(): void {
    for (const signal of ['SIGTERM', 'SIGINT'] as const) process.off(signal, this.#onSignal)
  }
}

/** Ends the process when another one has taken the store, because both would write to it. */
function endAtOnce(logger: Logger): never {
  logger.error({}, 'another mirror has taken the store while this one was suspended; this one ends')
  process.exit(exitCode.failed)
}

async function refuseSecond(paths: MirrorPaths): Promise<void> {
  const running = await findReachableMirror(paths.stateFile)
  if (running === undefined || running.pid === process.pid) return
  const where = running.container ? `in the container ${running.container.name}` : `pid ${running.pid}`
  throw new MirrorError(`A mirror is already running (${where}), with its state in ${paths.stateDir}.`, {
    hints: [
      'mirror status',
      'mirror down',
      'MIRROR_HOME=<another folder> mirror serve   (a second one, on other ports)',
    ],
  })
}

/** Runs `mirror doctor` of this package, for the dashboard. Throws a MirrorError when it fails. */
async function runDoctor({ env }: Pick<CommandEnvironment, 'env'>): Promise<DoctorReport> {
  const settings = Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined)
  const result = await runCommand(process.execPath, [join(findPackageRoot(), 'bin', 'run.js'), 'doctor', '--json'], {
    timeoutMs: doctorTimeoutMs,
    env: Object.fromEntries(settings.filter(([name]) => name.startsWith('MIRROR_'))),
  })
  const report = parseObject(result?.stdout ?? '')
  if (report) return parseDoctorReport(report)
  const reason = result?.exitCode === undefined ? `it took more than ${doctorTimeoutMs / 1000} s` : 'it failed'
  throw new MirrorError(`The checks did not end: ${reason}.`, { hints: ['mirror doctor'] })
}

/** Reports whether stderr of this process is this file. */
async function isStderr(file: string): Promise<boolean> {
  try {
    const [own, other] = [fstatSync(2), await stat(file)]
    return own.dev === other.dev && own.ino === other.ino
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return false
  }
}

interface SurviveOptions {
  readonly logger: Logger
  /** Ends the process; the log is flushed at its end. */
  readonly exit?: (code: number) => void
}

/**
 * Handles failures that nothing has caught (docs/decisions/0015). An unhandled rejection ends one task: it is logged with its stack
 * and counted, and the server continues. The same holds for a system error from a callback, because a missing descriptor does not
 * damage the program's state. Any other exception may have left half-changed state: it is logged, and the process ends with exit
 * code 1. Returns a function that stops this.
 */
export function surviveFailures(
  source: Pick<NodeJS.Process, 'on' | 'off'>,
  { logger, exit = (code) => process.exit(code) }: SurviveOptions,
): () => void {
  let count = 0
  const onRejection = (reason: unknown) => {
    count += 1
    logger.error({ error: getStack(reason), count }, 'unhandled rejection; the mirror continues')
  }
  const onException = (error: unknown) => {
    count += 1
    const fields = { error: getStack(error), count }
    if (getErrno(error) !== undefined) return logger.error(fields, 'system error in a callback; the mirror continues')
    logger.error(fields, 'uncaught exception; the mirror ends, because its state may be damaged')
    exit(exitCode.failed)
  }
  source.on('unhandledRejection', onRejection)
  source.on('uncaughtException', onException)
  return () => {
    source.off('unhandledRejection', onRejection)
    source.off('uncaughtException', onException)
  }
}

function getStack(error: unknown): string {
  return (error instanceof Error && error.stack) || describeFailure(error)
}
