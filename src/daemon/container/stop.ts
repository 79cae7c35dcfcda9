import { isHealthy } from '../../admin/client.ts'
import { openTunnel } from '../../docker/connection.ts'
import { type ContainerEngine, type ContainerState, DockerError } from '../../docker/engine.ts'
import { exitCode, type ExitCode, MirrorError } from '../../lib/errors.ts'
import type { Clock } from '../../lib/time.ts'
import { publishedAt } from './spec.ts'

/** An answer that has not come by then will not come. */
const readyWithinMs = 60_000
const lookMs = 50
/** A look through an engine elsewhere starts a program there. */
const lookAfarMs = 500

export interface AwaitedContainer {
  readonly id: string
  /** The port in it where its mirror says how it is. */
  readonly admin: number
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Returns when the mirror in a container answers. Throws a MirrorError, in that mirror's own words, when it does not. */
export async function awaitContainer(engine: ContainerEngine, awaited: AwaitedContainer): Promise<ContainerState> {
  const { id, admin, clock, signal } = awaited
  const end = clock.monotonic() + readyWithinMs
  for (;;) {
    signal.throwIfAborted()
    const found = await engine.containers.find(id)
    if (found?.running && (await answers(engine, found, admin))) return found
    // A restart is what the engine does about a mirror that has ended at once.
    const ended = found === undefined || found.restarting || !found.running
    if (ended) throw await failure(engine, id, endOf(found), found?.exitCode)
    if (clock.monotonic() > end) throw await failure(engine, id, silenceOf(engine, found, admin), undefined)
    await clock.sleep(engine.isElsewhere ? lookAfarMs : lookMs, signal)
  }
}

async function answers(engine: ContainerEngine, found: ContainerState, admin: number): Promise<boolean> {
  const port = publishedAt(found, admin)
  if (!engine.isElsewhere) return port !== undefined && isHealthy(`http://127.0.0.1:${port}`)
  const connect = () => openTunnel(engine, found.id, admin)
  try {
    return await isHealthy(`http://127.0.0.1:${admin}`, { connect, timeoutMs: 10_000 })
  } catch (error) {
    // It may have ended in that very moment; a look at it says so.
    if (error instanceof MirrorError && error.cause instanceof DockerError) return false
    throw error
  }
}

function silenceOf({ isElsewhere }: ContainerEngine, found: ContainerState, admin: number): string {
  const where = isElsewhere ? `its port ${admin}` : `127.0.0.1:${publishedAt(found, admin)} of this machine`
  return `it runs, but nothing answers at ${where}`
}

function endOf(found: ContainerState | undefined): string {
  return found === undefined ? 'the container is gone' : `it ended with exit code ${found.exitCode}`
}

/** Why the mirror in the container has ended, in its own words. */
async function failure(
  { containers }: ContainerEngine,
  id: string,
  why: string,
  code: number | undefined,
): Promise<MirrorError> {
  const lines: string[] = []
  try {
    const request = { lines: 30, follow: false, signal: AbortSignal.timeout(5000) }
    for await (const line of containers.logs(id, request)) lines.push(line)
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
  }
  const at = lines.findLastIndex((line) => line.startsWith('mirror: '))
  if (at === -1)
    return new MirrorError(`The mirror in the container could not be started: ${why}.`, { hints: lines.slice(-5) })
  const hints = lines.slice(at + 1).map((line) => line.trim())
  return new MirrorError(lines[at]!.slice('mirror: '.length), {
    exit: exitCodes.find((known) => known === code) ?? exitCode.failed,
    hints: hints.filter((line) => line !== '' && line !== 'Next:'),
  })
}

const exitCodes: readonly ExitCode[] = Object.values(exitCode).filter((code) => code !== 0)
