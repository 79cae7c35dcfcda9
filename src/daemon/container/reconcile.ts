import { type MirrorState, readState, readVolumeMarkerEngine } from '../../admin/state.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { type DockerEndpoint, renderDockerHost, isRemoteEngine } from '../../docker/endpoint.ts'
import { type DockerEngine, type ContainerState, DockerError, type PublishedPort } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { Clock } from '../../lib/time.ts'
import { removeLocalImage } from './image.ts'
import {
  containerAliases,
  containerName,
  type ContainerApplyRequest,
  type ContainerPlan,
  type ContainerPorts,
  createContainerSpec,
  type DesiredContainer,
  dataFolder,
  replacedName,
  getContainerOwner,
  createVolumeLabels,
  volumeName,
} from './spec.ts'
import {
  awaitContainer,
  findOwnContainer,
  wrapDockerError,
  catchDockerError,
  removeContainer,
  restartContainer,
  stopContainer,
  addRollbackResult,
} from './stop.ts'

/** Throws a MirrorError when the volume belongs to another mirror. A volume that a user created is used as it is. */
export async function refuseForeignVolume(
  { volumes, isRemote }: Pick<DockerEngine, 'volumes' | 'isRemote'>,
  { data, owner }: Pick<DesiredContainer, 'data' | 'owner'>,
): Promise<void> {
  const found = 'volume' in data ? await volumes.find(data.volume) : undefined
  const otherOwner = found && getContainerOwner(found)
  if (otherOwner === undefined || otherOwner === owner) return
  throw new MirrorError(`The volume ${volumeName} belongs to another mirror, with its state in ${otherOwner}.`, {
    hints: [
      'Remove it there: MIRROR_HOME=… mirror down --volumes',
      ...(isRemote ? [] : ['Use a folder: mirror up --data DIR']),
    ],
  })
}

/** Throws a MirrorError that names the container which has already published one of the ports on the same address. */
export async function refuseTakenPorts({ containers }: DockerEngine, ports: ContainerPorts): Promise<void> {
  for (const [name, port] of listPorts(ports)) {
    if (port.outside === 0) continue
    const holders = await containers.findPublishing(port.outside)
    const other = holders.find((holder) => holder.name !== containerName && publishedAddresses.includes(holder.address))
    if (other !== undefined) throw createPortTakenError(name, port.outside, `the container ${other.name}`)
  }
}

/** Lists addresses that conflict with the mirror's; the engine publishes IPv6 separately. */
const publishedAddresses = ['127.0.0.1', '0.0.0.0']

/**
 * Applies a plan and returns when the mirror answers. Throws a MirrorError when it does not; then the container before runs
 * again, if there was one.
 */
export async function applyContainerPlan(
  engine: DockerEngine,
  plan: ContainerPlan,
  request: ContainerApplyRequest,
): Promise<ContainerState> {
  if (plan.action === 'create') return createAndStart(engine, request)
  if (plan.action === 'replace') return replaceContainer(engine, request, () => createAndStart(engine, request))
  const { containers, networks } = engine
  const { id, restarting } = (await containers.find(containerName))!
  // Waits for a starting mirror first, because replacing its files removes them for a moment.
  if (plan.action === 'keep') await awaitAnswer(engine, id, request)
  await sendExports(engine, id, request)
  for (const network of plan.connect) await joinNetwork(engine, network, id)
  for (const network of plan.disconnect)
    await wrapDockerError(`The container cannot leave the network ${network}`, networks.disconnect(network, id))
  if (plan.action === 'keep') return awaitReady(engine, id, request)
  try {
    request.signal.throwIfAborted()
    await startContainer(engine, id, request.desired.ports)
    return await awaitReady(engine, id, request)
  } catch (error) {
    // Stops the container again: a process that it was to replace needs the ports.
    if (!restarting) await catchDockerError(stopContainer(engine, id))
    throw error
  }
}

async function createAndStart(engine: DockerEngine, request: ContainerApplyRequest): Promise<ContainerState> {
  const { desired, signal, instance } = request
  const newVolume = await createVolume(engine, desired)
  let id: string | undefined
  try {
    id = await createContainer(engine, desired, instance)
    await sendExports(engine, id, request)
    for (const network of desired.networks) await joinNetwork(engine, network, id)
    signal.throwIfAborted()
    await startContainer(engine, id, desired.ports)
    return await awaitReady(engine, id, request)
  } catch (error) {
    // Removes a container that never worked; its volume stays. Stopping it releases the store.
    if (id !== undefined) await catchDockerError(removeContainer(engine, id))
    // Removes a new volume, which belongs to the user of this image: that of another image may not be able to write to it.
    if (newVolume !== undefined) await catchDockerError(engine.volumes.remove(newVolume))
    throw error
  }
}

/** Creates the volume; returns its name when it did not exist. */
async function createVolume({ volumes }: DockerEngine, { data, owner }: DesiredContainer): Promise<string | undefined> {
  if ('folder' in data || (await volumes.find(data.volume)) !== undefined) return undefined
  await wrapDockerError(
    `The volume ${data.volume} cannot be created`,
    volumes.create(data.volume, createVolumeLabels(owner)),
  )
  return data.volume
}

async function awaitReady(engine: DockerEngine, id: string, request: ContainerApplyRequest): Promise<ContainerState> {
  const container = await awaitAnswer(engine, id, request)
  await request.onReady(container)
  return container
}

function awaitAnswer(
  engine: DockerEngine,
  id: string,
  { clock, signal, desired }: ContainerApplyRequest,
): Promise<ContainerState> {
  return awaitContainer(engine, { id, admin: desired.ports.admin.inside, clock, signal })
}

function sendExports(
  { containers }: DockerEngine,
  id: string,
  { exportArchive }: ContainerApplyRequest,
): Promise<void> {
  return wrapDockerError(
    'The container cannot receive its configuration',
    containers.unpack(id, dataFolder, exportArchive),
    'docker system df   (shows the disk usage)',
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
      throw new MirrorError(`Another command created the container ${containerName} at the same time.`, {
        hints: ['mirror status', 'mirror up --runtime container   (again)'],
        cause: error,
      })
    throw new MirrorError(`The Docker engine cannot create the container: ${error.message}.`, { cause: error })
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
      if (taken) throw createPortTakenError(taken[0], taken[1].outside, unknownProgram, error)
    }
    throw new MirrorError(`The container cannot be started: ${error.message}.`, { cause: error })
  }
}

function listPorts(ports: ContainerPorts): [string, PublishedPort][] {
  return Object.entries(ports).filter((entry): entry is [string, PublishedPort] => entry[1] !== undefined)
}

const unknownProgram = 'another program'

function createPortTakenError(name: string, port: number, holder: string, cause?: unknown): MirrorError {
  const other = port + 1000 <= 65_535 ? port + 1000 : port - 1000
  return new MirrorError(`Port ${port} (${name}) is already in use by ${holder}.`, {
    hints: [
      `mirror up --runtime container --${name}-port ${other}`,
      // Suggests to stop a known program only.
      ...(holder === unknownProgram ? [] : [`Stop ${holder}`]),
    ],
    cause,
  })
}

/**
 * Replaces the container. Stops the old one, because only one can have the store and the ports, and sets it aside under another
 * name until the new one answers. Restores it otherwise.
 */
async function replaceContainer(
  engine: DockerEngine,
  request: ContainerApplyRequest,
  createSuccessor: () => Promise<ContainerState>,
): Promise<ContainerState> {
  // Finds the container again: creating an image may have taken minutes, and the name may belong to another container by now.
  const before = await findOwnContainer(engine, request.desired.owner)
  if (before === undefined) return createSuccessor()
  const { id } = before
  const { signal } = request
  signal.throwIfAborted()
  let successor: ContainerState
  try {
    await stopContainer(engine, id)
    await wrapDockerError('The container cannot be set aside', engine.containers.rename(id, replacedName))
    signal.throwIfAborted()
    successor = await createSuccessor()
  } catch (error) {
    const refusal = await catchDockerError(restoreContainer(engine, before, request))
    throw wasUp(before) ? addRollbackResult(error, { refusal, signal }) : error
  }
  // Ignores a failure: the next `up` or `down` removes the container.
  await catchDockerError(engine.containers.remove(id))
  if (before.image !== successor.image) await catchDockerError(removeLocalImage(engine, before.image))
  return successor
}

async function restoreContainer(
  engine: DockerEngine,
  before: ContainerState,
  request: ContainerApplyRequest,
): Promise<void> {
  const { id } = before
  if (wasUp(before)) return request.onRestored(await restartContainer(engine, id, request.clock))
  const current = await engine.containers.find(id)
  if (current !== undefined && current.name !== containerName) await engine.containers.rename(id, containerName)
}

/** Returns true if the container ran. A container that the user stopped is not started after a failure. */
function wasUp({ running, restarting }: ContainerState): boolean {
  return running || restarting
}

interface InterruptedReplace {
  /** Holds the state folder of the mirror. */
  readonly owner: string
  /** Holds the id of the container that is recorded as the mirror. */
  readonly recordedId: string | undefined
  readonly clock: Clock
}

/**
 * Recovers from an `up` that was interrupted while it replaced the container: the container that was set aside is the mirror
 * again, unless its successor is recorded already. Starts it when possible.
 */
export async function recoverInterruptedReplace(
  engine: DockerEngine,
  { owner, recordedId, clock }: InterruptedReplace,
): Promise<void> {
  const { containers } = engine
  const before = await findOwnContainer(engine, owner, replacedName)
  if (before === undefined) return
  const successor = await findOwnContainer(engine, owner)
  if (successor !== undefined && successor.id === recordedId) return removeContainer(engine, before.id)
  if (successor !== undefined) await removeContainer(engine, successor.id)
  await wrapDockerError('The container cannot be renamed back', containers.rename(before.id, containerName))
  await catchDockerError(restartContainer(engine, before.id, clock))
}

/**
 * Throws a MirrorError (exit 2) when the mirror is on the engine of another machine than the engine that is chosen now: a second
 * mirror would start empty, and the first one would be forgotten. Engines of this machine are not compared, because one engine
 * has several addresses.
 */
export async function refuseOtherEngine(
  engine: Pick<DockerEngine, 'endpoint' | 'isRemote'>,
  { stateFile, stateDir }: Pick<MirrorPaths, 'stateFile' | 'stateDir'>,
  { running, remembered }: { running: MirrorState | undefined; remembered: boolean },
): Promise<void> {
  // Accepts the chosen engine for an explicit `--runtime container`, whatever ran before.
  if (running === undefined && !remembered) return
  const recorded = running
    ? running.container?.engine
    : ((await readState(stateFile))?.container?.engine ?? (await readVolumeMarkerEngine(stateDir)))
  if (recorded === undefined || renderDockerHost(recorded) === renderDockerHost(engine.endpoint)) return
  if (!engine.isRemote && !isRemoteEngine(recorded)) return
  const what = running === undefined ? 'The mirror ran in a container the last time,' : 'The mirror runs in a container'
  throw new MirrorError(
    `${what} on ${renderDockerHost(recorded)}, but Docker is at ${renderDockerHost(engine.endpoint)} now.`,
    {
      exit: exitCode.usage,
      hints: [
        `${renderDockerVariables(recorded)} mirror up   (there)`,
        running === undefined
          ? 'mirror up --runtime container   (a new one, with an empty cache)'
          : 'mirror down   (stops that one)',
      ],
    },
  )
}

function renderDockerVariables(endpoint: DockerEndpoint): string {
  const tlsFolder = endpoint.kind === 'tcp' ? endpoint.tlsFolder : undefined
  const tls = tlsFolder === undefined ? '' : ` DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=${tlsFolder}`
  return `DOCKER_HOST=${renderDockerHost(endpoint)}${tls}`
}
