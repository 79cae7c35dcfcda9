import { createHash } from 'node:crypto'
import { nodeInImage } from '../../admin/client.ts'
import type { ContainerSpec, ContainerState, DataSource, DockerEngineInfo, PublishedPort } from '../../docker/engine.ts'
import { parseObject } from '../../lib/json.ts'
import { mirrorName, mirrorServiceName } from '../../lib/network.ts'
import type { Clock } from '../../lib/time.ts'

export const containerName = mirrorName

/** What the containers of its networks call it. */
export const containerAliases: readonly string[] = [mirrorServiceName, mirrorName]

/** The name of the one that is being replaced, as long as its successor has not proved itself. */
export const replacedName = 'mirror-before'

/** The volume that keeps what is cached and pushed, and what the mirror notes down. */
export const volumeName = 'mirror-data'

/** The folder in the container where that is. */
export const dataFolder = '/data'

/** The only user there is in an image of ours. */
export const imageUser = '1000:1000'

/**
 * Set to 1, it tells the mirror in a container that the engine lives in a virtual machine or in namespaces of its own. What the
 * engine forwards from a published port may then come from an address outside of the container's networks.
 */
export const vmEngineVariable = 'MIRROR_ENGINE_ENCLOSED'

/** What the user wants of a mirror in a container. */
export interface DesiredContainer {
  readonly version: string
  /** The folder on this machine that holds the token: whose mirror it is. */
  readonly owner: string
  readonly image: { readonly id: string; readonly hasEntrypoint: boolean }
  /** By part of the configuration; see `configHashes`. */
  readonly configHashes: Readonly<Record<string, string>>
  /** A hash of the files that are handed over. */
  readonly files: string
  readonly ports: ContainerPorts
  /** Each exists. */
  readonly networks: readonly string[]
  readonly data: DataSource
  readonly user: string
  /** Bytes. */
  readonly memory: number
  readonly env: Readonly<Record<string, string>>
  /** The name, among the files that are handed over, of the certificates that Node shall trust besides its own. */
  readonly extraCa: string | undefined
  readonly engine: Pick<DockerEngineInfo, 'logDriver'>
  /** The engine lives in a virtual machine or in namespaces of its own. */
  readonly isInVm?: boolean
}

/** Undefined where there is no registry. */
export interface ContainerPorts {
  readonly cache: PublishedPort
  readonly registry: PublishedPort | undefined
  readonly admin: PublishedPort
}

/** What is to be done so that the container is as wished. */
export type ContainerPlan =
  | { readonly action: 'create' }
  /** It is as wished, but does not run. */
  | ({ readonly action: 'start' } & NetworkChanges)
  | ({ readonly action: 'keep' } & NetworkChanges)
  | { readonly action: 'replace'; readonly changed: string[] }

/** These need no new container. */
interface NetworkChanges {
  readonly connect: string[]
  readonly disconnect: string[]
}

const label = {
  version: 'dev-mirror.version',
  owner: 'dev-mirror.owner',
  config: 'dev-mirror.config',
  settings: 'dev-mirror.settings',
  instance: 'dev-mirror.instance',
  adminPort: 'dev-mirror.admin-port',
} as const

/** Whose mirror the container, or the volume, is: a folder of state; undefined for one that is none of ours. */
export function ownerOf({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.owner]
}

/** Which mirror lives in the container; undefined for one that is none of ours. */
export function getInstance({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.instance]
}

/** The port in the container where its mirror says how it is; undefined for one that is none of ours. */
export function getAdminPort({ labels }: Pick<ContainerState, 'labels'>): number | undefined {
  const port = Number(labels[label.adminPort])
  return Number.isSafeInteger(port) ? port : undefined
}

/** Where a port of the container is published. */
export function getHostPort({ ports }: Pick<ContainerState, 'ports'>, inside: number): number | undefined {
  return ports.find((port) => port.inside === inside)?.outside
}

/** What tells our volume from another mirror's, and from what only has its name. */
export function createVolumeLabels(owner: string): Record<string, string> {
  return { [label.owner]: owner }
}

function getVersion({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.version]
}

/** Compares what is wished with what is. Labels are the memory; only networks are looked at themselves. */
export function planContainer(desired: DesiredContainer, existing: ContainerState | undefined): ContainerPlan {
  if (existing === undefined) return { action: 'create' }
  const changed = [
    ...(getVersion(existing) === desired.version ? [] : ['version']),
    ...(existing.image === desired.image.id ? [] : ['image']),
    ...listChangedKeys(parseLabel(existing.labels[label.config]), desired.configHashes),
    ...listChangedKeys(parseLabel(existing.labels[label.settings]), hashSettings(desired)),
  ]
  if (changed.length > 0) return { action: 'replace', changed }
  const connect = desired.networks.filter((name) => !existing.networks.includes(name))
  const disconnect = existing.networks.filter(
    (name) => !baseNetworks.includes(name) && !desired.networks.includes(name),
  )
  return { action: existing.running ? 'keep' : 'start', connect, disconnect }
}

/** The network it is made on, as Docker and as podman call it: always there, and ports can always be published from it. */
const baseNetworks = ['bridge', 'podman']

/** The container to make. `instance`: new for every one. */
export function createContainerSpec(desired: DesiredContainer, instance: string): ContainerSpec {
  const { image, engine } = desired
  return {
    name: containerName,
    image: image.id,
    entrypoint: image.hasEntrypoint ? undefined : [nodeInImage, program],
    command: ['serve'],
    env: {
      ...desired.env,
      ...pathVariables(getExportFolder(instance)),
      ...(desired.extraCa !== undefined && { NODE_EXTRA_CA_CERTS: `${getExportFolder(instance)}/${desired.extraCa}` }),
      MIRROR_INSTANCE: instance,
      ...(desired.isInVm && { [vmEngineVariable]: '1' }),
    },
    user: desired.user,
    labels: {
      [label.version]: desired.version,
      [label.owner]: desired.owner,
      [label.config]: JSON.stringify(desired.configHashes),
      [label.settings]: JSON.stringify(hashSettings(desired)),
      [label.instance]: instance,
      [label.adminPort]: String(desired.ports.admin.inside),
    },
    ports: Object.values(desired.ports).filter((port) => port !== undefined),
    data: { at: dataFolder, from: desired.data },
    memory: desired.memory,
    restarts: true,
    healthCheck: [nodeInImage, '-e', createHealthProgram(desired.ports.admin.inside)],
    // Only these two drivers know the options; others look after themselves.
    logOptions: ['json-file', 'local'].includes(engine.logDriver) ? { 'max-size': '16m', 'max-file': '2' } : {},
  }
}
export const packageFolder = '/mirror'
export const program = `${packageFolder}/bin/run.js`

/** What the mirror in the container keeps for itself, beside what is cached. */
export const homeFolder = `${dataFolder}/home`

/** Files in it that come from this machine, in a folder for each instance: one that is put back finds its own. */
export const exportFolder = `${homeFolder}/handed`

export function getExportFolder(instance: string): string {
  return `${exportFolder}/${instance}`
}

/** Names in the folder of what is handed over. */
export const exportedFileNames = {
  config: 'mirror.yaml',
  /** The last of them: whoever has it is the mirror, and its predecessor will not be put back. */
  endpoints: 'endpoints.json',
  credentials: 'docker/config.json',
} as const

function pathVariables(handed: string): Record<string, string> {
  return {
    MIRROR_HOME: homeFolder,
    MIRROR_DATA: dataFolder,
    MIRROR_CONFIG: `${handed}/mirror.yaml`,
    DOCKER_CONFIG: `${handed}/docker`,
    HOME: homeFolder,
  }
}

function createHealthProgram(adminPort: number): string {
  return (
    `require('node:http').get('http://127.0.0.1:${adminPort}/healthz',` +
    `(answer)=>process.exit(answer.statusCode===200?0:1)).on('error',()=>process.exit(1))`
  )
}

function hashSettings({ ports, data, user, memory, env, files }: DesiredContainer): Record<string, string> {
  return Object.fromEntries(
    Object.entries({ ports, data, user, memory, environment: env, files, names: containerAliases }).map(
      ([name, value]) => [name, hash(value)],
    ),
  )
}

function hash(value: unknown): string {
  return createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16)
}

function listChangedKeys(before: Record<string, unknown>, now: Readonly<Record<string, string>>): string[] {
  return Object.keys(now).filter((name) => before[name] !== now[name])
}

/** A label that somebody has tampered with differs in everything. */
function parseLabel(text: string | undefined): Record<string, unknown> {
  return parseObject(text ?? '') ?? {}
}

/** A container that is to be there, and whoever waits for it. */
export interface ApplyRequest {
  readonly desired: DesiredContainer
  /** Which mirror it is: a new one in a container that is made. */
  readonly instance: string
  /** A tar archive of the files that are handed over, for the data folder. */
  readonly exportArchive: Buffer
  readonly clock: Clock
  /** Ends the attempt; whatever was there before is put back first. */
  readonly signal: AbortSignal
  /** The last step, once the mirror in it answers. Where it fails, all of it has failed. */
  readonly onReady: (container: ContainerState) => Promise<void>
  /** The mirror that was to be replaced runs again; free ports may be other ones now. */
  readonly onRestored: (container: ContainerState) => Promise<void>
}
