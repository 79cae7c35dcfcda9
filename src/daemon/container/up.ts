import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { getRemoteEngine } from '../../admin/access.ts'
import { openAdminToken } from '../../admin/api.ts'
import {
  type Endpoints,
  findReachableMirror,
  findRunning,
  type MirrorState,
  readState,
  removeVolumeMarker,
  writeState,
  writeVolumeMarker,
} from '../../admin/state.ts'
import type { Config } from '../../config/config.ts'
import { findCertificate, loadConfig } from '../../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../../config/paths.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { renderDockerHost } from '../../docker/endpoint.ts'
import {
  type ContainerState,
  type DockerEngine,
  ensureNetworks,
  type PublishedPort,
  resolveNetworkNames,
} from '../../docker/engine.ts'
import { MirrorError } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { mirrorName, mirrorServiceName } from '../../lib/network.ts'
import { type CommandEnvironment, runCommand } from '../../lib/process.ts'
import type { Clock } from '../../lib/time.ts'
import { checkNamedFiles, listPlainUpstreams } from '../start-errors.ts'
import { prepareRollback, replaceWithRollback } from '../stop.ts'
import { findDroppedNetworks, type DroppedParts, findMovedAddresses, type UpReport } from '../up.ts'
import {
  assertCredentialsShared,
  createExportArchive,
  exportCredentials,
  type ExportedFiles,
  recordRestored,
  selectCredentialHosts,
  sendEndpoints,
} from './credentials.ts'
import { listClearTextWarnings, prepareDesired, refuseRemoteFolder } from './desired.ts'
import { getMemoFilePath } from './image-content.ts'
import { ensureImage, type ImageRequest, localImage } from './image.ts'
import {
  applyContainerPlan,
  recoverInterruptedReplace,
  refuseForeignVolume,
  refuseOtherEngine,
  refuseTakenPorts,
} from './reconcile.ts'
import {
  containerName,
  type ContainerPlan,
  type DesiredContainer,
  exportedFileNames,
  getHostPort,
  getInstance,
  planContainer,
  volumeName,
} from './spec.ts'
import { explainRememberedEngine, findOwnContainer } from './stop.ts'

/** Describes the plan of `mirror up --runtime container`. */
export interface ContainerUpPlan {
  readonly action: 'start' | 'replace' | 'connect' | 'nothing'
  /** Holds the reasons to replace the container. */
  readonly changed: string[]
  /** Holds the networks to join and leave without a restart. */
  readonly connect: readonly string[]
  readonly disconnect: readonly string[]
  readonly request: ContainerRequest
  readonly preparation: ContainerPreparation
  readonly engine: DockerEngine
  /** Holds the parts of the running mirror that the new one will not have. */
  readonly dropped: DroppedParts
  /** Holds the running mirror, a container or a process. */
  readonly running: MirrorState | undefined
}

interface ContainerUpInput extends Omit<ContainerRequest, 'paths' | 'config' | 'credentials'> {
  /** Holds the registries that the user named; undefined for those of the existing container. */
  readonly credentials: readonly string[] | undefined
  /** Is true when the user did not ask for a container, but the mirror ran in one the last time. */
  readonly remembered: boolean
}

/** Compares the configuration with what runs. Throws a MirrorError before it changes anything that runs. */
export async function planContainerUp(input: ContainerUpInput): Promise<ContainerUpPlan> {
  const { surroundings } = input
  const paths = mirrorPaths(surroundings)
  const config = await loadConfig({ ...surroundings, paths })
  const engine = await openEngine(surroundings).catch((error: unknown) => {
    throw input.remembered ? explainRememberedEngine(error) : error
  })
  const running = await (input.remembered ? findRunning : findReachableMirror)(paths.stateFile)
  await refuseOtherEngine(engine, paths, { ...input, running })
  const recorded = running ?? (await readState(paths.stateFile))
  const before = recorded?.container?.credentials ?? []
  const credentials = selectCredentialHosts(input.credentials, before, config)
  const request = { ...input, credentials, paths, config }
  const preparation = await prepareContainer(engine, request)
  const { plan } = preparation
  const dropped = {
    networks: findDroppedNetworks(running, preparation.desired.networks),
    credentials: before.filter((host) => !credentials.includes(host)),
  }
  const common = { request, preparation, engine, running, changed: [], connect: [], disconnect: [], dropped }
  if (running !== undefined && !running.container) return { ...common, action: 'replace', changed: ['runtime'] }
  if (plan.action === 'create') return { ...common, action: 'start' }
  if (plan.action === 'replace') return { ...common, action: 'replace', changed: plan.changed }
  const { connect, disconnect } = plan
  if (plan.action === 'start') return { ...common, action: 'start', connect, disconnect }
  const action = connect.length + disconnect.length > 0 ? 'connect' : 'nothing'
  return { ...common, action, connect, disconnect }
}

const outcomes = {
  start: 'started',
  replace: 'replaced',
  connect: 'connected',
  nothing: 'already-up',
} as const

/**
 * Runs the configured mirror in a container: creates, replaces or keeps it. Throws a MirrorError when it does not start; then the
 * mirror before runs again, a container or a process.
 */
export async function upMirrorInContainer(plan: ContainerUpPlan): Promise<UpReport> {
  const { request, running } = plan
  const { version, root, signal } = request
  const runningProcess = running !== undefined && !running.container ? running : undefined
  const rollback =
    runningProcess && (await prepareRollback(runningProcess, { ...request, program: join(root, 'bin', 'run.js') }))
  const { container, endpoints } = await replaceWithRollback(rollback, signal, () =>
    applyPreparedPlan(plan.engine, request, plan.preparation),
  )
  const { isRemote, endpoint } = plan.engine
  const engine = isRemote ? renderDockerHost(endpoint) : undefined
  return {
    outcome: outcomes[plan.action],
    changed: plan.action === 'connect' ? [...plan.connect, ...plan.disconnect] : plan.changed,
    container: container.name,
    ...(engine !== undefined && { engine }),
    version,
    endpoints,
    registryNetworks: request.config.registry.networks,
    dropped: plan.dropped,
    moved: findMovedAddresses(running?.endpoints, endpoints, {
      before: running && getRemoteEngine(running),
      now: engine,
    }),
  }
}

interface ContainerRequest {
  readonly surroundings: CommandEnvironment
  readonly paths: MirrorPaths
  readonly config: Config
  readonly version: string
  /** Holds the folder of the mirror's package. */
  readonly root: string
  /** Holds the image that was published with this version, if any. */
  readonly published: string | undefined
  /** Holds the registries whose credentials are exported. */
  readonly credentials: readonly string[]
  readonly dryRun: boolean
  readonly clock: Clock
  readonly signal: AbortSignal
  /** Prints progress and notes for the user. */
  readonly notify: (text: string) => void
}

/** Holds the plan and its input. */
interface ContainerPreparation {
  readonly plan: ContainerPlan
  readonly desired: DesiredContainer
  readonly files: ExportedFiles
  /** Identifies the mirror; new for a new container. */
  readonly instance: string
  /** Holds the existing container. */
  readonly existing: ContainerState | undefined
  /** Holds the host name of the mirror for clients on its networks. */
  readonly host: string
}

interface ContainerUp {
  readonly container: ContainerState
  readonly endpoints: Endpoints
}

/**
 * Compares the configuration with the existing container. Creates absent networks and the image first, unless it is a dry run.
 * Throws a MirrorError before it changes anything that runs.
 */
export async function prepareContainer(engine: DockerEngine, request: ContainerRequest): Promise<ContainerPreparation> {
  const { surroundings, paths, config, credentials } = request
  assertCredentialsShared(credentials, config)
  refuseRemoteFolder(engine, surroundings.env)
  if (!request.dryRun) await recover(engine, request)
  await checkNamedFiles(config, surroundings.env)
  const existing = await findOwnContainer(engine, paths.stateDir)
  const info = await engine.getInfo()
  const { container: partial, files, warnings } = await prepareDesired(request, info)
  await refuseForeignVolume(engine, partial)
  const networks = resolveNetworkNames(config.networks, surroundings.env)
  if (!request.dryRun) await ensureNetworks(engine.networks, networks, surroundings.env)
  const imageOptions = toImageRequest(request, networks[0])
  const image = request.dryRun
    ? await findPresentImage(engine, imageOptions.requested)
    : await ensureImage(engine, info, imageOptions)
  const desired = { ...partial, image, networks }
  const plan = planContainer(desired, existing)
  if (plan.action === 'create' || plan.action === 'replace') await refuseTakenPorts(engine, desired.ports)
  // Reads the credentials before the running mirror stops, so that a missing one does not cost it.
  const credentialsFile = await exportCredentials(credentials, config, surroundings.env, request.clock)
  for (const warning of [...listClearTextWarnings(engine), ...listPlainUpstreams(config), ...warnings])
    request.notify(warning)
  const keptInstance = plan.action === 'keep' || plan.action === 'start' ? existing && getInstance(existing) : undefined
  return {
    plan,
    desired,
    files: { ...files, [exportedFileNames.credentials]: credentialsFile },
    instance: keptInstance ?? randomUUID(),
    existing,
    host: await chooseNetworkHost(config),
  }
}

/** Chooses the name that clients do not send to a proxy, unless the certificate is valid for the other name only. */
async function chooseNetworkHost({ tls }: Config): Promise<string> {
  if (tls === undefined) return mirrorServiceName
  try {
    const certificate = await findCertificate({ ...tls, ca: undefined }, undefined)
    const isForOther = !certificate.isFor(mirrorServiceName) && certificate.isFor(mirrorName)
    return isForOther ? mirrorName : mirrorServiceName
  } catch (error) {
    // Ignores an unreadable certificate: the mirror does not start with it, and reports why.
    if (error instanceof MirrorError) return mirrorServiceName
    throw error
  }
}

/** Recovers from a command that was killed during a replacement. */
async function recover(engine: DockerEngine, { paths, clock }: ContainerRequest): Promise<void> {
  const recordedId = (await readState(paths.stateFile))?.container?.id
  await recoverInterruptedReplace(engine, { owner: paths.stateDir, recordedId, clock })
}

/** Finds the image for a dry run, which creates none. */
async function findPresentImage({ images }: DockerEngine, name = localImage): Promise<DesiredContainer['image']> {
  return (await images.find(name)) ?? { id: '', hasEntrypoint: false }
}

/** Applies the plan and records the addresses of the mirror. */
export async function applyPreparedPlan(
  engine: DockerEngine,
  request: ContainerRequest,
  preparation: ContainerPreparation,
): Promise<ContainerUp> {
  const { paths, config, clock, signal } = request
  const { plan, desired, files, instance, existing } = preparation
  await makeFolder(paths.stateDir)
  const token = await openAdminToken(paths.tokenFile)
  const exportArchive = await createExportArchive({ files, instance, token, user: desired.user })
  const before = await readState(paths.stateFile)
  const container = await applyContainerPlan(engine, plan, {
    desired,
    instance,
    exportArchive,
    clock,
    signal,
    onReady: (container) => recordStarted(engine, request, preparation, container),
    async onRestored(container) {
      if (before?.container === undefined || existing === undefined) return
      await recordRestored(engine, paths, { container, before, ports: existing.ports })
    },
  })
  return { container, endpoints: toEndpoints(container, preparation, config) }
}

/** Records the container as the mirror and sends it its addresses. */
async function recordStarted(
  engine: DockerEngine,
  { paths, config, credentials, clock }: ContainerRequest,
  preparation: ContainerPreparation,
  container: ContainerState,
): Promise<void> {
  const { desired } = preparation
  // Computes the addresses only now, because free ports are known now, and networks may have changed.
  const endpoints = toEndpoints(container, preparation, config)
  const state: MirrorState = {
    version: desired.version,
    runtime: 'container',
    startedAt: container.startedAt,
    configHashes: { ...desired.configHashes },
    endpoints,
    container: {
      id: container.id,
      name: containerName,
      instance: getInstance(container),
      volume: 'volume' in desired.data ? volumeName : undefined,
      credentials: [...credentials],
      handedOverAt: new Date(clock.wall()).toISOString(),
      engine: engine.endpoint,
      elsewhere: engine.isRemote ? { adminPort: desired.ports.admin.inside } : undefined,
    },
  }
  // Records the volume while the container runs, because other programs may remove the container.
  if ('volume' in desired.data) await writeVolumeMarker(paths.stateDir, desired.data.volume, engine.endpoint)
  else await removeVolumeMarker(paths.stateDir)
  await writeState(paths.stateFile, state)
  await sendEndpoints(engine, container, endpoints)
}

function toEndpoints(
  container: ContainerState,
  { desired: { ports, networks }, host }: ContainerPreparation,
  { tls }: Config,
): Endpoints {
  const scheme = tls ? 'https' : 'http'
  const toUrls = (port: PublishedPort | undefined, scheme: string) => {
    const hostPort = port && getHostPort(container, port.inside)
    return hostPort === undefined ? [] : [`${scheme}://127.0.0.1:${hostPort}`]
  }
  return {
    cache: toUrls(ports.cache, scheme),
    registry: toUrls(ports.registry, scheme),
    admin: toUrls(ports.admin, 'http'),
    networks: Object.fromEntries(networks.map((network) => [network, `${scheme}://${host}:${ports.cache.inside}`])),
  }
}

function toImageRequest(
  { surroundings, paths, root, published, clock, signal, notify }: ContainerRequest,
  network: string | undefined,
): ImageRequest {
  return {
    requested: surroundings.env['MIRROR_IMAGE'] || undefined,
    published,
    root,
    memoFile: getMemoFilePath(paths.stateDir),
    network,
    host: {
      platform: surroundings.platform,
      arch: process.arch,
      execPath: process.execPath,
      nodeVersion: process.version,
      now: clock.wall(),
    },
    runCommand,
    signal,
    notify,
  }
}
