import { type MirrorState, readState, volumeMarkerEngine } from '../../admin/state.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { type DockerEndpoint, engineHost, isRemoteEngine } from '../../docker/endpoint.ts'
import { type DockerEngine, type ContainerState, DockerError, type PublishedPort } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { Clock } from '../../lib/time.ts'
import { removeLocalImage } from './image.ts'
import {
  containerAliases,
  containerName,
  type ApplyRequest,
  type ContainerPlan,
  type ContainerPorts,
  createContainerSpec,
  type DesiredContainer,
  dataFolder,
  replacedName,
  ownerOf,
  createVolumeLabels,
  volumeName,
} from './spec.ts'
import {
  awaitContainer,
  findOwnContainer,
  wrapDockerError,
  catchDockerError,
  removeContainer,
  startAgain,
  stopContainer,
  describeRollback,
} from './stop.ts'

/** Throws a MirrorError when the volume is another mirror's. One that somebody has made by hand is taken as it is. */
export async function refuseForeignVolume(
  { volumes, isRemote: isElsewhere }: Pick<DockerEngine, 'volumes' | 'isRemote'>,
  { data, owner }: Pick<DesiredContainer, 'data' | 'owner'>,
): Promise<void> {
  const found = 'volume' in data ? await volumes.find(data.volume) : undefined
  const whose = found && ownerOf(found)
  if (whose === undefined || whose === owner) return
  throw new MirrorError(`The volume ${volumeName} is another mirror's, with its state in ${whose}.`, {
    hints: [
      'Drop it from there: MIRROR_HOME=… mirror down --volumes',
      ...(isElsewhere ? [] : ['Use a folder: mirror up --data DIR']),
    ],
  })
}

/** Throws a MirrorError that names the container which has one of the ports already, where ours is published. */
export async function refuseTakenPorts({ containers }: DockerEngine, ports: ContainerPorts): Promise<void> {
  for (const [name, port] of listPorts(ports)) {
    if (port.outside === 0) continue
    const holders = await containers.findPublishing(port.outside)
    const other = holders.find((holder) => holder.name !== containerName && publishedAddresses.includes(holder.address))
    if (other !== undefined) throw portTakenError(name, port.outside, `the container ${other.name}`)
  }
}

/** Where a port of ours is in the way; the engine publishes IPv6 apart from IPv4. */
const publishedAddresses = ['127.0.0.1', '0.0.0.0']

/**
 * Has the container as it is wished, and returns when the mirror in it answers. Throws a MirrorError when it does not; then
 * the one before runs again, if there was one.
 */
export async function applyContainerPlan(
  engine: DockerEngine,
  plan: ContainerPlan,
  order: ApplyRequest,
): Promise<ContainerState> {
  if (plan.action === 'create') return createAndStart(engine, order)
  if (plan.action === 'replace') return replaceContainer(engine, order, () => createAndStart(engine, order))
  const { containers, networks } = engine
  const { id, restarting } = (await containers.find(containerName))!
  // One that is just starting reads its files: while they are replaced they are not its own for a moment.
  if (plan.action === 'keep') await awaitAnswer(engine, id, order)
  await sendExports(engine, id, order)
  for (const network of plan.connect) await joinNetwork(engine, network, id)
  for (const network of plan.disconnect)
    await wrapDockerError(`The container cannot leave the network ${network}`, networks.disconnect(network, id))
  if (plan.action === 'keep') return awaitReady(engine, id, order)
  try {
    order.signal.throwIfAborted()
    await startContainer(engine, id, order.desired.ports)
    return await awaitReady(engine, id, order)
  } catch (error) {
    // Stopped again, as it was: a process that it was to replace needs the ports.
    if (!restarting) await catchDockerError(stopContainer(engine, id))
    throw error
  }
}

async function createAndStart(engine: DockerEngine, order: ApplyRequest): Promise<ContainerState> {
  const { desired, signal, instance } = order
  const newVolume = await createVolume(engine, desired)
  let id: string | undefined
  try {
    id = await createContainer(engine, desired, instance)
    await sendExports(engine, id, order)
    for (const network of desired.networks) await joinNetwork(engine, network, id)
    signal.throwIfAborted()
    await startContainer(engine, id, desired.ports)
    return await awaitReady(engine, id, order)
  } catch (error) {
    // One that never worked is of no use; what another one has cached is kept. Stopped first, it lets go of the store.
    if (id !== undefined) await catchDockerError(removeContainer(engine, id))
    // It belongs to the users of the image that was tried: those of another may not be able to write to it.
    if (newVolume !== undefined) await catchDockerError(engine.volumes.remove(newVolume))
    throw error
  }
}

/** The volume's name when there was none before. */
async function createVolume({ volumes }: DockerEngine, { data, owner }: DesiredContainer): Promise<string | undefined> {
  if ('folder' in data || (await volumes.find(data.volume)) !== undefined) return undefined
  await wrapDockerError(
    `The volume ${data.volume} cannot be made`,
    volumes.create(data.volume, createVolumeLabels(owner)),
  )
  return data.volume
}

async function awaitReady(engine: DockerEngine, id: string, order: ApplyRequest): Promise<ContainerState> {
  const container = await awaitAnswer(engine, id, order)
  await order.onReady(container)
  return container
}

function awaitAnswer(
  engine: DockerEngine,
  id: string,
  { clock, signal, desired }: ApplyRequest,
): Promise<ContainerState> {
  return awaitContainer(engine, { id, admin: desired.ports.admin.inside, clock, signal })
}

function sendExports({ containers }: DockerEngine, id: string, { exportArchive: handed }: ApplyRequest): Promise<void> {
  return wrapDockerError(
    'The configuration cannot be handed to the container',
    containers.unpack(id, dataFolder, handed),
    'docker system df   (is there room?)',
  )
}

function joinNetwork({ networks }: DockerEngine, network: string, id: string): Promise<void> {
  return wrapDockerError(
    `The container cannot join the network ${network}`,
    networks.connect(network, id, containerAliases),
    `docker network inspect ${network}`,
  )
}

async function createContainer(
  { containers }: DockerEngine,
  desired: DesiredContainer,
  instance: string,
): Promise<string> {
  try {
    return await containers.create(createContainerSpec(desired, instance))
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

async function startContainer(engine: DockerEngine, id: string, ports: ContainerPorts): Promise<void> {
  try {
    await engine.containers.start(id)
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    if (/port is already allocated|address already in use|Bind for/i.test(error.message)) {
      await refuseTakenPorts(engine, ports)
      const taken = listPorts(ports).find(([, { outside }]) => error.message.includes(`:${outside}`))
      if (taken) throw portTakenError(taken[0], taken[1].outside, unknownProgram, error)
    }
    throw new MirrorError(`The container cannot be started: ${error.message}.`, { cause: error })
  }
}

function listPorts(ports: ContainerPorts): [string, PublishedPort][] {
  return Object.entries(ports).filter((entry): entry is [string, PublishedPort] => entry[1] !== undefined)
}

const unknownProgram = 'another program'

function portTakenError(name: string, port: number, who: string, cause?: unknown): MirrorError {
  const other = port + 1000 <= 65_535 ? port + 1000 : port - 1000
  return new MirrorError(`Port ${port} (${name}) is already in use by ${who}.`, {
    hints: [
      `mirror up --runtime container --${name}-port ${other}`,
      // Nobody can stop a program that is not known.
      ...(who === unknownProgram ? [] : [`Stop ${who}`]),
    ],
    cause,
  })
}

/**
 * Has a new container in place of ours. The old one is stopped, for only one of them can have the store and the ports, and put
 * aside under another name until its successor has proved itself; otherwise it is put back as it was.
 */
async function replaceContainer(
  engine: DockerEngine,
  order: ApplyRequest,
  make: () => Promise<ContainerState>,
): Promise<ContainerState> {
  // Looked at again: making an image may have taken minutes, and the name may be somebody else's by now.
  const before = await findOwnContainer(engine, order.desired.owner)
  if (before === undefined) return make()
  const { id } = before
  const { signal } = order
  signal.throwIfAborted()
  let made: ContainerState
  try {
    await stopContainer(engine, id)
    await wrapDockerError('The container cannot be put aside', engine.containers.rename(id, replacedName))
    signal.throwIfAborted()
    made = await make()
  } catch (error) {
    const refusal = await catchDockerError(restoreContainer(engine, before, order))
    throw wasUp(before) ? describeRollback(error, { refusal, signal }) : error
  }
  // Should it stay, the next `up` or `down` removes it.
  await catchDockerError(engine.containers.remove(id))
  if (before.image !== made.image) await catchDockerError(removeLocalImage(engine, before.image))
  return made
}

async function restoreContainer(engine: DockerEngine, before: ContainerState, order: ApplyRequest): Promise<void> {
  const { id } = before
  if (wasUp(before)) return order.onRestored(await startAgain(engine, id, order.clock))
  const now = await engine.containers.find(id)
  if (now !== undefined && now.name !== containerName) await engine.containers.rename(id, containerName)
}

/** One that somebody has stopped is not started by a failure. */
function wasUp({ running, restarting }: ContainerState): boolean {
  return running || restarting
}

interface InterruptedReplace {
  /** The folder on this machine whose mirror it is. */
  readonly owner: string
  /** The id of the container that was noted down as the mirror. */
  readonly settled: string | undefined
  readonly clock: Clock
}

/**
 * Tidies up after an `up` that was cut off while it replaced the container: what was put aside is the mirror again, unless its
 * successor was noted down already. It is started again where that can be.
 */
export async function recoverInterruptedReplace(
  engine: DockerEngine,
  { owner, settled, clock }: InterruptedReplace,
): Promise<void> {
  const { containers } = engine
  const before = await findOwnContainer(engine, owner, replacedName)
  if (before === undefined) return
  const successor = await findOwnContainer(engine, owner)
  if (successor !== undefined && successor.id === settled) return removeContainer(engine, before.id)
  if (successor !== undefined) await removeContainer(engine, successor.id)
  await wrapDockerError('The container cannot have its name back', containers.rename(before.id, containerName))
  await catchDockerError(startAgain(engine, before.id, clock))
}

/**
 * Throws a MirrorError (exit 2) when the mirror is on an engine of another machine than the one that is chosen now: a second one
 * would begin with nothing in it, and the first one would be forgotten. Names of this machine's own engines are not compared,
 * for one engine has several.
 */
export async function refuseOtherEngine(
  engine: Pick<DockerEngine, 'endpoint' | 'isRemote'>,
  { stateFile, stateDir }: Pick<MirrorPaths, 'stateFile' | 'stateDir'>,
  { running, remembered }: { running: MirrorState | undefined; remembered: boolean },
): Promise<void> {
  // Asked for by its name, a container is made where Docker is now, whatever was there before.
  if (running === undefined && !remembered) return
  const noted = running
    ? running.container?.engine
    : ((await readState(stateFile))?.container?.engine ?? (await volumeMarkerEngine(stateDir)))
  if (noted === undefined || engineHost(noted) === engineHost(engine.endpoint)) return
  if (!engine.isRemote && !isRemoteEngine(noted)) return
  const what = running === undefined ? 'The mirror ran in a container the last time,' : 'The mirror runs in a container'
  throw new MirrorError(`${what} on ${engineHost(noted)}, and Docker is at ${engineHost(engine.endpoint)} now.`, {
    exit: exitCode.usage,
    hints: [
      `${dockerVariables(noted)} mirror up   (there)`,
      running === undefined
        ? 'mirror up --runtime container   (another one, with nothing in it yet)'
        : 'mirror down   (ends that one)',
    ],
  })
}

function dockerVariables(endpoint: DockerEndpoint): string {
  const tlsFolder = endpoint.kind === 'tcp' ? endpoint.tlsFolder : undefined
  const tls = tlsFolder === undefined ? '' : ` DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=${tlsFolder}`
  return `DOCKER_HOST=${engineHost(endpoint)}${tls}`
}
