import { randomUUID } from 'node:crypto'
import { openAdminToken } from '../../admin/api.ts'
import {
  type Endpoints,
  forgetResting,
  type MirrorState,
  noteResting,
  readState,
  writeState,
} from '../../admin/state.ts'
import { clearTextWarnings } from '../../app/container/clear-text.ts'
import { refuseFolderElsewhere } from '../../app/container/data-folder.ts'
import { handedArchive, type HandedFiles } from '../../app/container/handed-archive.ts'
import { noteAgain } from '../../app/container/note-again.ts'
import { handedFiles } from '../../app/container/outside.ts'
import { tellEndpoints } from '../../app/container/tell-endpoints.ts'
import type { Config } from '../../config/config.ts'
import type { MirrorPaths, Surroundings } from '../../config/paths.ts'
import { findCertificate } from '../../config/tls.ts'
import {
  type ContainerEngine,
  type ContainerState,
  ensureNetworks,
  networkNames,
  type PublishedPort,
} from '../../docker/engine.ts'
import { MirrorError } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { mirrorName, mirrorServiceName } from '../../lib/network.ts'
import { runCommand } from '../../lib/process.ts'
import type { Clock } from '../../lib/time.ts'
import { findOurs } from '../../runtime/find-ours.ts'
import { memoFileIn } from '../../runtime/image-content.ts'
import { mendCutOff } from '../../runtime/mend-cut-off.ts'
import { checkNamedFiles } from '../start-errors.ts'
import { makeWish } from './desired.ts'
import { handOver, refuseUnshared } from './handover.ts'
import { ensureImage, type ImageRequest, localImage } from './image.ts'
import { carryOut, refuseForeignVolume, refuseTakenPorts } from './reconcile.ts'
import {
  containerName,
  type ContainerPlan,
  type ContainerWish,
  instanceOf,
  planContainer,
  publishedAt,
  volumeName,
} from './spec.ts'

export interface ContainerRequest {
  readonly surroundings: Surroundings
  readonly paths: MirrorPaths
  readonly config: Config
  readonly version: string
  /** The folder of our own package. */
  readonly root: string
  /** The image that was published with this version, if one was. */
  readonly published: string | undefined
  /** Registries whose credentials are handed over. */
  readonly credentials: readonly string[]
  readonly dryRun: boolean
  readonly clock: Clock
  readonly signal: AbortSignal
  /** Hears what takes a while, and what a user should know. */
  readonly say: (text: string) => void
}

/** What has to be done, and all that is needed for it. */
export interface ContainerPreparation {
  readonly plan: ContainerPlan
  readonly wish: ContainerWish
  readonly files: HandedFiles
  /** Which mirror it will be: a new one in a container that is made. */
  readonly instance: string
  /** The container that is there. */
  readonly actual: ContainerState | undefined
  /** By which of its names clients on its networks are told to call it. */
  readonly host: string
}

export interface ContainerUp {
  readonly container: ContainerState
  readonly endpoints: Endpoints
}

/**
 * Compares what is configured with the container that is there; networks and the image are made first when they are absent,
 * unless it is a dry run. Throws a MirrorError before anything that runs is touched.
 */
export async function prepareContainer(
  engine: ContainerEngine,
  request: ContainerRequest,
): Promise<ContainerPreparation> {
  const { surroundings, paths, config, credentials } = request
  refuseUnshared(credentials, config)
  refuseFolderElsewhere(engine, surroundings.env)
  if (!request.dryRun) await mend(engine, request)
  await checkNamedFiles(config, surroundings.env)
  const actual = await findOurs(engine, paths.stateDir)
  const info = await engine.info()
  const { wish: known, files, warnings } = await makeWish(request, info)
  await refuseForeignVolume(engine, known)
  const networks = networkNames(config.networks, surroundings.env)
  if (!request.dryRun) await ensureNetworks(engine.networks, networks, surroundings.env)
  const order = imageRequest(request, networks[0])
  const image = request.dryRun ? await presentImage(engine, order.wanted) : await ensureImage(engine, info, order)
  const wish = { ...known, image, networks }
  const plan = planContainer(wish, actual)
  if (plan.action === 'create' || plan.action === 'replace') await refuseTakenPorts(engine, wish.ports)
  // Asked for here, where a credential that cannot be had costs nobody the mirror that runs.
  const lent = await handOver(credentials, config, surroundings.env, request.clock)
  for (const warning of [...clearTextWarnings(engine), ...warnings]) request.say(warning)
  const kept = plan.action === 'keep' || plan.action === 'start' ? actual && instanceOf(actual) : undefined
  return {
    plan,
    wish,
    files: { ...files, [handedFiles.credentials]: lent },
    instance: kept ?? randomUUID(),
    actual,
    host: await networkHost(config),
  }
}

/** The name that no proxy is asked for, unless the certificate is only for the other one. */
async function networkHost({ tls }: Config): Promise<string> {
  if (tls === undefined) return mirrorServiceName
  try {
    const certificate = await findCertificate({ ...tls, ca: undefined }, undefined)
    const isForOther = !certificate.isFor(mirrorServiceName) && certificate.isFor(mirrorName)
    return isForOther ? mirrorName : mirrorServiceName
  } catch (error) {
    // One that cannot be read keeps the mirror from starting, which says what is wrong with it.
    if (error instanceof MirrorError) return mirrorServiceName
    throw error
  }
}

/** Another command may have been killed while it was at it. */
async function mend(engine: ContainerEngine, { paths, clock }: ContainerRequest): Promise<void> {
  const settled = (await readState(paths.stateFile))?.container?.id
  await mendCutOff(engine, { owner: paths.stateDir, settled, clock })
}

/** The image as far as it is there: a dry run makes none. */
async function presentImage({ images }: ContainerEngine, wanted = localImage): Promise<ContainerWish['image']> {
  return (await images.find(wanted)) ?? { id: '', hasEntrypoint: false }
}

/** Has the container as it was planned, and notes down where it answers. */
export async function upContainer(
  engine: ContainerEngine,
  request: ContainerRequest,
  preparation: ContainerPreparation,
): Promise<ContainerUp> {
  const { paths, config, clock, signal } = request
  const { plan, wish, files, instance, actual } = preparation
  await makeFolder(paths.stateDir)
  const token = await openAdminToken(paths.tokenFile)
  const handed = await handedArchive({ files, instance, token, user: wish.user })
  const before = await readState(paths.stateFile)
  const container = await carryOut(engine, plan, {
    wish,
    instance,
    handed,
    clock,
    signal,
    settle: (container) => settle(engine, request, preparation, container),
    async putBack(container) {
      if (before?.container === undefined || actual === undefined) return
      await noteAgain(engine, paths, { container, before, ports: actual.ports })
    },
  })
  return { container, endpoints: endpointsOf(container, preparation, config) }
}

/** It is the mirror now: it is told where clients reach it, and noted down. */
async function settle(
  engine: ContainerEngine,
  { paths, config, credentials, clock }: ContainerRequest,
  preparation: ContainerPreparation,
  container: ContainerState,
): Promise<void> {
  const { wish } = preparation
  // Which port is free is known only now, and networks may have changed.
  const endpoints = endpointsOf(container, preparation, config)
  const state: MirrorState = {
    pid: 0,
    processIdentity: undefined,
    version: wish.version,
    runtime: 'container',
    startedAt: container.startedAt,
    configHashes: { ...wish.configHashes },
    endpoints,
    logFile: undefined,
    container: {
      id: container.id,
      name: containerName,
      instance: instanceOf(container),
      volume: 'volume' in wish.data ? volumeName : undefined,
      credentials: [...credentials],
      handedOverAt: new Date(clock.wall()).toISOString(),
      engine: engine.endpoint,
      elsewhere: engine.isElsewhere ? { adminPort: wish.ports.admin.inside } : undefined,
    },
  }
  // Noted while it runs: it may be removed behind our back.
  if ('volume' in wish.data) await noteResting(paths.stateDir, wish.data.volume, engine.endpoint)
  else await forgetResting(paths.stateDir)
  await writeState(paths.stateFile, state)
  await tellEndpoints(engine, container, endpoints)
}

function endpointsOf(
  container: ContainerState,
  { wish: { ports, networks }, host }: ContainerPreparation,
  { tls }: Config,
): Endpoints {
  const scheme = tls ? 'https' : 'http'
  const at = (port: PublishedPort | undefined, scheme: string) => {
    const outside = port && publishedAt(container, port.inside)
    return outside === undefined ? [] : [`${scheme}://127.0.0.1:${outside}`]
  }
  return {
    cache: at(ports.cache, scheme),
    registry: at(ports.registry, scheme),
    admin: at(ports.admin, 'http'),
    networks: Object.fromEntries(networks.map((network) => [network, `${scheme}://${host}:${ports.cache.inside}`])),
  }
}

function imageRequest(
  { surroundings, paths, root, published, clock, signal, say }: ContainerRequest,
  network: string | undefined,
): ImageRequest {
  return {
    wanted: surroundings.env['MIRROR_IMAGE'] || undefined,
    published,
    root,
    memoFile: memoFileIn(paths.stateDir),
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
    say,
  }
}
