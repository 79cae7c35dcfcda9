import type { Config } from '../../config/config.ts'
import type { MirrorPaths, Surroundings } from '../../config/paths.ts'
import type { Clock } from '../../lib/clock.ts'
import { makeFolder } from '../../lib/make-folder.ts'
import { runCommand } from '../../lib/run-command.ts'
import { ensureImage, localImage, type ImageRequest } from '../../runtime/container-image.ts'
import {
  containerName,
  dataFolder,
  planContainer,
  volumeName,
  type ContainerPlan,
  type ContainerWish,
} from '../../runtime/container-spec.ts'
import { carryOut, findOurs, publishedAt, refuseForeignVolume, refuseTakenPorts } from '../../runtime/container.ts'
import type { ContainerState, PublishedPort } from '../../runtime/docker-containers.ts'
import type { ContainerEngine } from '../../runtime/container-engine.ts'
import { memoFileIn } from '../../runtime/image-content.ts'
import { networkNames } from '../../runtime/kind-network.ts'
import type { Endpoints } from '../../runtime/runtime.ts'
import { writeState } from '../../runtime/state-file.ts'
import { openAdminToken } from '../admin-token.ts'
import { ensureNetworks } from './ensure-networks.ts'
import { handOver, refuseUnshared } from './hand-over.ts'
import { handedArchive, type HandedFiles } from './handed-archive.ts'
import { makeWish } from './make-wish.ts'
import { handedFiles } from './outside.ts'
import { forgetResting, noteResting } from './resting.ts'

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
  for (const warning of warnings) request.say(warning)
  return { plan, wish, files: { ...files, [handedFiles.credentials]: lent } }
}

/** The image as far as it is there: a dry run makes none. */
async function presentImage({ images }: ContainerEngine, wanted = localImage): Promise<ContainerWish['image']> {
  return (await images.find(wanted)) ?? { id: '', hasEntrypoint: false }
}

/** Has the container as it was planned, and notes down where it answers. */
export async function upContainer(
  engine: ContainerEngine,
  request: ContainerRequest,
  { plan, wish, files }: ContainerPreparation,
): Promise<ContainerUp> {
  const { paths, config, credentials, clock, signal } = request
  await makeFolder(paths.stateDir)
  const token = await openAdminToken(paths.tokenFile)
  const archive = await handedArchive({ files, token, user: wish.user })
  const container = await carryOut(engine, plan, { wish, handed: archive, clock, signal })
  const endpoints = endpointsOf(container, wish, config)
  // Which port is free is known only now, and networks may have changed.
  const told = { [handedFiles.endpoints]: JSON.stringify(endpoints) }
  const news = await handedArchive({ files: told, token: undefined, user: wish.user })
  await engine.containers.unpack(container.id, dataFolder, news)
  await writeState(paths.stateFile, {
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
      volume: 'volume' in wish.data ? volumeName : undefined,
      credentials: [...credentials],
      handedOverAt: new Date(clock.wall()).toISOString(),
    },
  })
  // Noted while it runs: it may be removed behind our back.
  if ('volume' in wish.data) await noteResting(paths.stateDir, wish.data.volume)
  else await forgetResting(paths.stateDir)
  return { container, endpoints }
}

function endpointsOf(container: ContainerState, { ports, networks }: ContainerWish, { tls }: Config): Endpoints {
  const scheme = tls ? 'https' : 'http'
  const at = (port: PublishedPort | undefined, scheme: string) => {
    const outside = port && publishedAt(container, port)
    return outside === undefined ? [] : [`${scheme}://127.0.0.1:${outside}`]
  }
  return {
    cache: at(ports.cache, scheme),
    registry: at(ports.registry, scheme),
    admin: at(ports.admin, 'http'),
    networks: Object.fromEntries(
      networks.map((network) => [network, `${scheme}://${containerName}:${ports.cache.inside}`]),
    ),
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
