import { randomBytes } from 'node:crypto'
import { nodeInImage } from '../../admin/client.ts'
import {
  type DockerEngine,
  type ContainerSpec,
  DockerError,
  type DockerEngineInfo,
  toImageArchitecture,
  type ImageState,
} from '../../docker/engine.ts'
import { unlessAborted } from '../../lib/async.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { RunCommand } from '../../lib/process.ts'
import { streamTar } from '../../lib/tar.ts'
import {
  parseBaseImage,
  createBuildContext,
  computeContentDigest,
  type ImageContent,
  createImageEntries,
  createNodeImageContent,
} from './image-content.ts'
import { dataFolder, homeFolder, imageUser, program } from './spec.ts'
import { catchDockerError, wrapDockerError } from './stop.ts'

export interface ImageRequest {
  /** Names the image that the user requested. */
  readonly requested: string | undefined
  /** Names the image that was published with this version. */
  readonly published: string | undefined
  /** Holds the folder of the mirror's package. */
  readonly root: string
  readonly memoFile: string
  /** Names the network for the trial of a new image. */
  readonly network: string | undefined
  readonly host: {
    readonly platform: string
    /** Holds the architecture as Node names it. */
    readonly arch: string
    readonly execPath: string
    /** Holds the version of Node: `v20.20.0`. */
    readonly nodeVersion: string
    /** Gives the wall-clock time, ms. */
    readonly now: number
  }
  readonly runCommand: RunCommand
  readonly signal: AbortSignal
  /** Prints progress and notes for the user. */
  readonly notify: (text: string) => void
}

/** Holds the name of an image that is built on this machine. */
export const localImage = 'dev-mirror:local'

const contentLabel = 'dev-mirror.content'

/** Limits the time of a pull. */
const pullMs = 120_000

/**
 * Finds the image for the container: the named one, the published one, or one that is built on this machine without a registry.
 * Throws a MirrorError when none is available.
 */
export async function ensureImage(
  engine: DockerEngine,
  info: DockerEngineInfo,
  request: ImageRequest,
): Promise<ImageState> {
  if (request.requested !== undefined)
    return assertPlatform(await findOrPull(engine, request.requested, request), request.requested, info)
  if (request.published !== undefined) {
    const published = await ignoreMirrorError(findOrPull(engine, request.published, request))
    if (published !== undefined) return assertPlatform(published, request.published, info)
  }
  return ensureLocalImage(engine, info, request)
}

async function ensureLocalImage(
  engine: DockerEngine,
  info: DockerEngineInfo,
  request: ImageRequest,
): Promise<ImageState> {
  const { host, root, memoFile, notify } = request
  const sameMachine = host.platform === info.os && toImageArchitecture(host.arch) === info.architecture
  const nodeImage = sameMachine ? await createNodeImageContent(root, host.execPath, request.runCommand) : undefined
  const context = await createBuildContext(root)
  const digests = {
    node: nodeImage && (await computeContentDigest(nodeImage, memoFile)),
    dockerfile: await computeContentDigest(context, memoFile),
  }
  const present = await engine.images.find(localImage)
  const presentDigest = present?.labels[contentLabel]
  if (
    present &&
    presentDigest !== undefined &&
    (presentDigest === digests.node || presentDigest === digests.dockerfile)
  )
    return present

  const base = parseBaseImage(context.texts['Dockerfile']!)
  const build = () => buildImage(engine, context, digests.dockerfile)
  const endOfLife = findEndOfLife(host.nodeVersion, host.now)
  if (nodeImage && endOfLife !== undefined) {
    notify(`Node ${host.nodeVersion} reached end of life on ${endOfLife}; trying to pull ${base} for the image.`)
    if ((await ignoreMirrorError(findOrPull(engine, base, request))) !== undefined) return build()
    notify(`${base} could not be pulled, so the container runs on Node ${host.nodeVersion}.`)
  }
  if (nodeImage) {
    notify('Building the image from the Node of this machine.')
    const labels = { [contentLabel]: digests.node! }
    await wrapImageError(engine.images.import(localImage, labels, streamTar(createImageEntries(nodeImage))))
    const image = (await engine.images.find(localImage))!
    const failure = await tryImage(engine, image, request)
    if (failure === undefined) return image
    await engine.images.remove(localImage)
    notify(`This machine's Node does not run in a container (${failure}); building on ${base} instead.`)
  } else notify(`Building the image on ${base}.`)
  await findOrPull(engine, base, request)
  return build()
}

/** Removes an image that was built on this machine and is no longer used; other images stay. */
export async function removeLocalImage({ images }: DockerEngine, id: string): Promise<void> {
  if ((await images.find(id))?.labels[contentLabel] !== undefined) await images.remove(id)
}

/** Tries a new image. Removes it when the trial is interrupted. */
async function tryImage(
  engine: DockerEngine,
  { id }: ImageState,
  { network, signal }: ImageRequest,
): Promise<string | undefined> {
  try {
    return await wrapDockerError('The new image cannot be tried', runTrial(engine, id, network, signal))
  } catch (error) {
    await catchDockerError(engine.images.remove(localImage))
    throw error
  }
}

function wrapImageError(image: Promise<void>): Promise<void> {
  return wrapDockerError(
    'The Docker engine cannot create the image',
    image,
    'docker system df   (shows the disk usage)',
  )
}

async function buildImage(engine: DockerEngine, context: ImageContent, digest: string): Promise<ImageState> {
  await wrapImageError(
    engine.images.build(localImage, { [contentLabel]: digest }, streamTar(createImageEntries(context))),
  )
  return (await engine.images.find(localImage))!
}

/** Finds an image, or pulls it. */
async function findOrPull(engine: DockerEngine, name: string, { signal, notify }: ImageRequest): Promise<ImageState> {
  const present = await engine.images.find(name)
  if (present !== undefined) return present
  const timeout = AbortSignal.timeout(pullMs)
  try {
    notify(`Pulling ${name}.`)
    await engine.images.pull(name, AbortSignal.any([signal, timeout]))
  } catch (error) {
    if (signal.aborted || (!(error instanceof DockerError) && !timeout.aborted)) throw error
    throw new MirrorError(`The image ${name} cannot be pulled: ${(error as Error).message}.`, {
      exit: exitCode.missing,
      hints: [`docker pull ${name}   (with your credentials)`],
      cause: error,
    })
  }
  return (await engine.images.find(name))!
}

async function ignoreMirrorError(image: Promise<ImageState>): Promise<ImageState | undefined> {
  try {
    return await image
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

function assertPlatform(image: ImageState, name: string, info: DockerEngineInfo): ImageState {
  if (image.os === info.os && image.architecture === info.architecture) return image
  throw new MirrorError(
    `The image ${name} is for ${image.os}/${image.architecture}, but the Docker engine runs ${info.os}/${info.architecture}.`,
    {
      exit: exitCode.usage,
      hints: [
        `docker pull --platform ${info.os}/${info.architecture} ${name}`,
        'mirror up --runtime container   (without --image: builds one)',
      ],
    },
  )
}

const trialSeconds = 30

/** Looks up a name on a network with names, starts a server on free ports and waits until it is ready. */
const trialProgram = `
const dns = require('node:dns'), { fork } = require('node:child_process')
const fail = (why) => { console.log(why); process.exit(1) }
setTimeout(() => fail('no answer within ${trialSeconds} s'), ${trialSeconds * 1000}).unref()
dns.lookup(process.env.NAME_TO_LOOK_UP, (error) => {
  if (error) return fail('names cannot be looked up: ' + error.code)
  const server = fork('${program}', ['serve'], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  server.on('exit', (code) => fail('the server ended with ' + code))
  server.on('message', (message) => {
    if (message.type !== 'ready') fail(message.message)
    server.removeAllListeners('exit')
    server.on('exit', () => process.exit(0))
    server.kill('SIGTERM')
  })
})`

/**
 * Runs an image in a container; returns what went wrong, or undefined. Leaves nothing behind, also when the signal aborts. Looks
 * up the container's own name on a user's network, which only the engine's name server knows; the default bridge has no name
 * server.
 */
async function runTrial(
  { containers, networks, volumes }: Pick<DockerEngine, 'containers' | 'networks' | 'volumes'>,
  image: string,
  network: string | undefined,
  signal: AbortSignal,
): Promise<string | undefined> {
  const name = `mirror-trial-${randomBytes(4).toString('hex')}`
  const spec: ContainerSpec = {
    name,
    image,
    entrypoint: [nodeInImage],
    command: ['-e', trialProgram],
    env: {
      MIRROR_HOME: homeFolder,
      MIRROR_DATA: dataFolder,
      HOME: homeFolder,
      NAME_TO_LOOK_UP: network === undefined ? 'localhost' : name,
      MIRROR_CACHE_PORT: '0',
      MIRROR_REGISTRY_PORT: '0',
      MIRROR_ADMIN_PORT: '0',
    },
    user: imageUser,
    labels: {},
    ports: [],
    data: { at: dataFolder, from: { volume: name } },
    memory: 512 * 1024 ** 2,
    restarts: false,
    healthCheck: undefined,
    logOptions: {},
  }
  const container = await containers.create(spec)
  try {
    if (network !== undefined) await networks.connect(network, container, [name])
    await containers.start(container)
    if ((await unlessAborted(containers.wait(container), signal)) === 0) return undefined
    const output: string[] = []
    const request = { lines: 5, follow: false, signal: AbortSignal.timeout(5000) }
    for await (const line of containers.readLogs(container, request)) output.push(line)
    return output.join(' / ') || 'it ended without output'
  } finally {
    await containers.remove(container)
    await volumes.remove(name)
  }
}

/** Maps Node's releases to their end of life. https://github.com/nodejs/Release#release-schedule */
const endsOfLife: Readonly<Record<string, string>> = {
  20: '2026-04-30',
  21: '2024-06-01',
  22: '2027-04-30',
  23: '2025-06-01',
  24: '2028-04-30',
  25: '2026-06-01',
  26: '2029-04-30',
}

/** Returns the end of life of this Node (`v22.1.0`) if it is over; `now` in ms. Unknown releases count as new. */
function findEndOfLife(version: string, now: number): string | undefined {
  const day = endsOfLife[/^v?(\d+)/.exec(version)?.[1] ?? '']
  return day !== undefined && Date.parse(`${day}T23:59:59Z`) < now ? day : undefined
}
