import { randomUUID } from 'node:crypto'
import type { Clock } from '../lib/clock.ts'
import { MirrorError, exitCode, type ExitCode } from '../lib/errors.ts'
import {
  containerName,
  containerSpec,
  dataFolder,
  ownerOf,
  volumeLabels,
  volumeName,
  type ContainerPlan,
  type ContainerPorts,
  type ContainerWish,
} from './container-spec.ts'
import type { ContainerState, PublishedPort } from './docker-containers.ts'
import { removeMade } from './container-image.ts'
import { DockerError, type ContainerEngine } from './container-engine.ts'
import { isHealthy } from './health.ts'

export interface ContainerOrder {
  readonly wish: ContainerWish
  /** A tar archive of the files that are handed over, for the data folder. */
  readonly handed: Buffer
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** An answer that has not come by then will not come. */
const readyWithinMs = 60_000
const lookMs = 50
/** Pulls in flight get 30 s to finish. */
const stopSeconds = 40

/** Our container; undefined when there is none. Throws a MirrorError when the name belongs to another one, which is left alone. */
export async function findOurs({ containers }: ContainerEngine, owner: string): Promise<ContainerState | undefined> {
  const found = await containers.find(containerName)
  if (found === undefined || ownerOf(found) === owner) return found
  const whose = ownerOf(found)
  if (whose === undefined)
    throw new MirrorError(`There is a container named ${containerName} that is not ours; it was left as it is.`, {
      hints: [`docker rename ${containerName} another-name`, `docker rm -f ${containerName}   (if nobody needs it)`],
    })
  throw new MirrorError(`The container ${containerName} is another mirror's, with its state in ${whose}.`, {
    hints: ['Stop it from there: MIRROR_HOME=… mirror down', 'Or use that one'],
  })
}

/** Throws a MirrorError when the volume is another mirror's. One that somebody has made by hand is taken as it is. */
export async function refuseForeignVolume(
  { volumes }: ContainerEngine,
  { data, owner }: Pick<ContainerWish, 'data' | 'owner'>,
): Promise<void> {
  const found = 'volume' in data ? await volumes.find(data.volume) : undefined
  const whose = found && ownerOf(found)
  if (whose === undefined || whose === owner) return
  throw new MirrorError(`The volume ${volumeName} is another mirror's, with its state in ${whose}.`, {
    hints: ['Drop it from there: MIRROR_HOME=… mirror down --volumes', 'Or use a folder: mirror up --data DIR'],
  })
}

/** Throws a MirrorError that names the container which has one of the ports already, where ours is published. */
export async function refuseTakenPorts({ containers }: ContainerEngine, ports: ContainerPorts): Promise<void> {
  for (const [name, port] of namedPorts(ports)) {
    if (port.outside === 0) continue
    const holders = await containers.publishing(port.outside)
    const other = holders.find((holder) => holder.name !== containerName && publishedOn.includes(holder.address))
    if (other !== undefined) throw portTaken(name, port.outside, `the container ${other.name}`)
  }
}

/** Where a port of ours is in the way; the engine publishes IPv6 apart from IPv4. */
const publishedOn = ['127.0.0.1', '0.0.0.0']

/** Makes the container as it is wished and returns when the mirror in it answers. Throws a MirrorError when it does not. */
export async function carryOut(
  engine: ContainerEngine,
  plan: ContainerPlan,
  order: ContainerOrder,
): Promise<ContainerState> {
  const { containers, networks } = engine
  const { wish, handed } = order
  const fresh = plan.action === 'create' || plan.action === 'replace'
  // Looked at again: making an image may have taken minutes, and the name may be somebody else's by now.
  const before = plan.action === 'replace' ? await findOurs(engine, wish.owner) : undefined
  if (before) await removeContainer(engine, before.id)
  const id = fresh ? await createContainer(engine, wish) : (await containers.find(containerName))!.id
  try {
    await containers.unpack(id, dataFolder, handed)
    for (const network of fresh ? wish.networks : plan.connect) await networks.connect(network, id, containerName)
    for (const network of fresh ? [] : plan.disconnect) await networks.disconnect(network, id)
    if (plan.action !== 'keep') await start(engine, id, wish.ports)
    await untilItAnswers(engine, id, wish.ports.admin, order)
  } catch (error) {
    // One that never worked is of no use; what it cached is kept.
    if (fresh) await containers.remove(id)
    throw error
  }
  if (before && before.image !== wish.image.id) await removeMade(engine, before.image)
  return (await containers.find(id))!
}

/** Ends and removes our container; its volume stays. */
export async function removeContainer({ containers }: ContainerEngine, id: string): Promise<void> {
  await containers.stop(id, stopSeconds)
  await containers.remove(id)
}

/** Where a port of the container is published. */
export function publishedAt({ ports }: ContainerState, { inside }: PublishedPort): number | undefined {
  return ports.find((port) => port.inside === inside)?.outside
}

async function createContainer({ containers, volumes }: ContainerEngine, wish: ContainerWish): Promise<string> {
  try {
    if ('volume' in wish.data && (await volumes.find(wish.data.volume)) === undefined)
      await volumes.create(wish.data.volume, volumeLabels(wish.owner))
    return await containers.create(containerSpec(wish, randomUUID()))
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    if (error.status === 409)
      throw new MirrorError(`Another ${containerName} was being made at the same time.`, {
        hints: ['mirror status', 'mirror up --runtime container   (again)'],
        cause: error,
      })
    throw new MirrorError(`The Docker engine will not make the container: ${error.message}.`, { cause: error })
  }
}

async function start(engine: ContainerEngine, id: string, ports: ContainerPorts): Promise<void> {
  try {
    await engine.containers.start(id)
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    if (/port is already allocated|address already in use|Bind for/i.test(error.message)) {
      await refuseTakenPorts(engine, ports)
      const taken = namedPorts(ports).find(([, { outside }]) => error.message.includes(`:${outside}`))
      if (taken) throw portTaken(taken[0], taken[1].outside, 'another program', error)
    }
    throw new MirrorError(`The container cannot be started: ${error.message}.`, { cause: error })
  }
}

async function untilItAnswers(
  engine: ContainerEngine,
  id: string,
  admin: PublishedPort,
  { clock, signal }: ContainerOrder,
): Promise<void> {
  const end = clock.monotonic() + readyWithinMs
  for (;;) {
    const found = await engine.containers.find(id)
    const port = found && publishedAt(found, admin)
    if (found?.running && port !== undefined && (await isHealthy(`http://127.0.0.1:${port}`))) return
    // A restart is what the engine does about a mirror that has ended at once.
    const ended = found === undefined || found.restarting || !found.running
    if (ended) throw await failure(engine, id, found?.exitCode)
    if (clock.monotonic() > end) throw await failure(engine, id, undefined)
    await clock.sleep(lookMs, signal)
  }
}

/** Why the mirror in the container has ended, in its own words. */
async function failure({ containers }: ContainerEngine, id: string, code: number | undefined): Promise<MirrorError> {
  const lines: string[] = []
  try {
    const request = { lines: 30, follow: false, signal: AbortSignal.timeout(5000) }
    for await (const line of containers.logs(id, request)) lines.push(line)
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
  }
  const at = lines.findLastIndex((line) => line.startsWith('mirror: '))
  if (at === -1) {
    const why = code === undefined ? 'it did not answer in time' : `it ended with exit code ${code}`
    return new MirrorError(`The mirror in the container could not be started: ${why}.`, { hints: lines.slice(-5) })
  }
  const hints = lines.slice(at + 1).map((line) => line.trim())
  return new MirrorError(lines[at]!.slice('mirror: '.length), {
    exit: exitCodes.find((known) => known === code) ?? exitCode.bug,
    hints: hints.filter((line) => line !== '' && line !== 'Next:'),
  })
}

const exitCodes: readonly ExitCode[] = Object.values(exitCode).filter((code) => code !== 0)

function namedPorts(ports: ContainerPorts): [string, PublishedPort][] {
  return Object.entries(ports).filter((entry): entry is [string, PublishedPort] => entry[1] !== undefined)
}

function portTaken(name: string, port: number, who: string, cause?: unknown): MirrorError {
  const other = port + 1000 <= 65_535 ? port + 1000 : port - 1000
  return new MirrorError(`Port ${port}, which the ${name} wants, is taken by ${who}.`, {
    hints: [`mirror up --runtime container --${name}-port ${other}`, 'or stop the other one'],
    cause,
  })
}
