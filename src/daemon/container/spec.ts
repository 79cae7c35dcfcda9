import { createHash } from 'node:crypto'
import { nodeInImage } from '../../admin/client.ts'
import type { ContainerSpec, ContainerState, DataSource, DockerEngineInfo, PublishedPort } from '../../docker/engine.ts'
import { parseObject } from '../../lib/json.ts'
import { mirrorName, mirrorServiceName } from '../../lib/network.ts'
import type { Clock } from '../../lib/time.ts'

export const containerName = mirrorName

/** Holds the names of the mirror for the containers of its networks. */
export const containerAliases: readonly string[] = [mirrorServiceName, mirrorName]

/** Holds the name of a container that is being replaced, until its successor answers. */
export const replacedName = 'mirror-before'

/** Holds the volume for cached and pushed content and for the mirror's state. */
export const volumeName = 'mirror-data'

/** Holds the folder of the volume in the container. */
export const dataFolder = '/data'

/** Holds the only user in the mirror's images. */
export const imageUser = '1000:1000'

/**
 * Names the variable that is 1 when the engine runs in a virtual machine or in namespaces of its own. Connections that the engine
 * forwards from a published port may then come from an address outside of the container's networks.
 */
export const vmEngineVariable = 'MIRROR_ENGINE_ENCLOSED'

/** Holds the container that the configuration asks for. */
export interface DesiredContainer {
  readonly version: string
  /** Names the state folder on this machine, which identifies the mirror. */
  readonly owner: string
  readonly image: { readonly id: string; readonly hasEntrypoint: boolean }
  /** Holds the hashes by part of the configuration, see `hashConfig`. */
  readonly configHashes: Readonly<Record<string, string>>
  /** Holds the hash of the exported files. */
  readonly files: string
  readonly ports: ContainerPorts
  /** Lists existing networks. */
  readonly networks: readonly string[]
  readonly data: DataSource
  readonly user: string
  /** Limits the memory, bytes. */
  readonly memory: number
  readonly env: Readonly<Record<string, string>>
  /** Names the file, among the exported ones, with the certificates that Node trusts in addition to its own. */
  readonly extraCa: string | undefined
  readonly engine: Pick<DockerEngineInfo, 'logDriver'>
  /** Is true when the engine runs in a virtual machine or in namespaces of its own. */
  readonly isInVm?: boolean
}

/** Holds the published ports; `registry` is undefined when it is switched off. */
export interface ContainerPorts {
  readonly cache: PublishedPort
  readonly registry: PublishedPort | undefined
  readonly admin: PublishedPort
}

/** Holds the steps from the existing container to the desired one. */
export type ContainerPlan =
  | { readonly action: 'create' }
  /** Is for a container that is as desired, but does not run. */
  | ({ readonly action: 'start' } & NetworkChanges)
  | ({ readonly action: 'keep' } & NetworkChanges)
  | { readonly action: 'replace'; readonly changed: string[] }

/** Lists changes of networks, which need no new container. */
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

/** Returns the state folder of the mirror that a container or volume belongs to; undefined when no mirror created it. */
export function getContainerOwner({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.owner]
}

/** Returns the instance of the mirror in a container; undefined when no mirror created it. */
export function getInstance({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.instance]
}

/** Returns the admin port in the container; undefined when no mirror created it. */
export function getAdminPort({ labels }: Pick<ContainerState, 'labels'>): number | undefined {
  const port = Number(labels[label.adminPort])
  return Number.isSafeInteger(port) ? port : undefined
}

/** Returns the port of the host where a port of the container is published. */
export function getHostPort({ ports }: Pick<ContainerState, 'ports'>, inside: number): number | undefined {
  return ports.find((port) => port.inside === inside)?.outside
}

/** Creates the labels that identify the volume of a mirror. */
export function createVolumeLabels(owner: string): Record<string, string> {
  return { [label.owner]: owner }
}

function getVersion({ labels }: Pick<ContainerState, 'labels'>): string | undefined {
  return labels[label.version]
}

/** Compares the desired container with the existing one: settings by its labels, networks by its state. */
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

/** Lists the networks that Docker and podman create containers on; they always exist, and ports can be published from them. */
const baseNetworks = ['bridge', 'podman']

/** Creates the settings of the container. `instance`: new for every container. */
export function createContainerSpec(desired: DesiredContainer, instance: string): ContainerSpec {
  const { image, engine } = desired
  return {
    name: containerName,
    image: image.id,
    entrypoint: image.hasEntrypoint ? undefined : [nodeInImage, program],
    command: ['serve'],
    env: {
      ...desired.env,
      ...createPathVariables(getExportFolder(instance)),
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
    // Omits the options for other log drivers, which reject them and limit their size themselves.
    logOptions: ['json-file', 'local'].includes(engine.logDriver) ? { 'max-size': '16m', 'max-file': '2' } : {},
  }
}
export const packageFolder = '/mirror'
export const program = `${packageFolder}/bin/run.js`

/** Holds the home folder of the mirror in the container, beside the content. */
export const homeFolder = `${dataFolder}/home`

/** Holds the exported files in a folder per instance, so that a restored container finds its own. */
export const exportFolder = `${homeFolder}/handed`

export function getExportFolder(instance: string): string {
  return `${exportFolder}/${instance}`
}

/** Holds the names of the exported files. */
export const exportedFileNames = {
  config: 'mirror.yaml',
  /** Is exported last: the container that has this file is the mirror, and its predecessor will not be restored. */
  endpoints: 'endpoints.json',
  credentials: 'docker/config.json',
} as const

function createPathVariables(exported: string): Record<string, string> {
  return {
    MIRROR_HOME: homeFolder,
    MIRROR_DATA: dataFolder,
    MIRROR_CONFIG: `${exported}/mirror.yaml`,
    DOCKER_CONFIG: `${exported}/docker`,
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

/** Parses a label; an invalid one differs in every key. */
function parseLabel(text: string | undefined): Record<string, unknown> {
  return parseObject(text ?? '') ?? {}
}

/** Holds the input of `applyContainerPlan`. */
export interface ContainerApplyRequest {
  readonly desired: DesiredContainer
  /** Identifies the mirror; new for a new container. */
  readonly instance: string
  /** Holds the tar archive of the exported files, for the data folder. */
  readonly exportArchive: Buffer
  readonly clock: Clock
  /** Ends the attempt; the container before is restored first. */
  readonly signal: AbortSignal
  /** Runs as the last step, once the mirror answers; its failure fails the whole attempt. */
  readonly onReady: (container: ContainerState) => Promise<void>
  /** Runs when the container before runs again, perhaps on other free ports. */
  readonly onRestored: (container: ContainerState) => Promise<void>
}
