import { access } from 'node:fs/promises'
import type Dockerode from 'dockerode'
import { MirrorError, errnoOf, exitCode, isConnectionFailure, systemError } from '../lib/errors.ts'
import { imageArchitecture } from './architecture.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'
import { DockerError, type ContainerEngine, type DockerNetworks, type DockerVolumes } from './container-engine.ts'
import { asked, askedIfThere } from './dockerode-asked.ts'
import { createContainers } from '../docker/dockerode-engine.ts'
import { openClient } from '../docker/dockerode.ts'
import { hostOf } from './host-of.ts'
import { createImages } from './dockerode-images.ts'
import { isElsewhere } from './is-elsewhere.ts'

/** The engine behind an endpoint. Throws a MirrorError (exit 4) when it is not there, or does not let us in. */
export async function openContainerEngine(endpoint: DockerEndpoint): Promise<ContainerEngine> {
  try {
    if (endpoint.kind === 'socket') await access(endpoint.path)
    const client = await openClient(endpoint)
    if (isElsewhere(endpoint)) await pingAfar(client)
    else await client.ping()
    return {
      endpoint,
      isElsewhere: isElsewhere(endpoint),
      async info() {
        const info = (await asked(client.info() as Promise<EngineAnswer>)) satisfies EngineAnswer
        return {
          version: info.ServerVersion,
          architecture: imageArchitecture(info.Architecture),
          os: info.OSType,
          rootless: (info.SecurityOptions ?? []).some((option) => /(^|=)rootless(,|$)/.test(option)),
          system: info.OperatingSystem,
          logDriver: info.LoggingDriver,
        }
      },
      containers: createContainers(client),
      images: createImages(client),
      networks: createNetworks(client),
      volumes: createVolumes(client),
    }
  } catch (error) {
    throw unreachable(error, endpoint)
  }
}

/** What is on the way to another machine may swallow a question; a login takes a while. */
const answerAfarMs = 45_000

async function pingAfar(client: Dockerode): Promise<void> {
  const abortSignal = AbortSignal.timeout(answerAfarMs)
  const asking = (client as unknown as { ping(options: { abortSignal: AbortSignal }): Promise<unknown> }).ping({
    abortSignal,
  })
  await asking.catch((error: unknown) => {
    if (!abortSignal.aborted) throw error
    throw systemError('ETIMEDOUT', 'read', `it was silent for ${answerAfarMs / 1000} s`)
  })
}

interface EngineAnswer {
  ServerVersion: string
  Architecture: string
  OSType: string
  OperatingSystem?: string
  SecurityOptions: string[] | null
  LoggingDriver: string
}

function createNetworks(client: Dockerode): DockerNetworks {
  return {
    async find(name) {
      const listed = await asked(client.listNetworks({ filters: { name: [name] } }))
      // The engine's filter matches parts of names.
      const network = listed.find((network) => network.Name === name)
      if (network === undefined) return undefined
      const inspected = await askedIfThere(client.getNetwork(network.Id).inspect())
      if (inspected === undefined) return undefined
      return {
        id: inspected.Id,
        name: inspected.Name,
        driver: inspected.Driver,
        ipv6: inspected.EnableIPv6,
        options: inspected.Options ?? {},
        containers: Object.keys(inspected.Containers ?? {}).length,
      }
    },
    async create({ name, ipv6Subnet, options }) {
      await asked(
        client.createNetwork({
          Name: name,
          Driver: 'bridge',
          CheckDuplicate: true,
          Options: { ...options },
          EnableIPv6: ipv6Subnet !== undefined,
          IPAM: { Driver: 'default', Options: {}, Config: ipv6Subnet === undefined ? [] : [{ Subnet: ipv6Subnet }] },
        }),
      )
    },
    async connect(network, container, names) {
      const EndpointConfig = { Aliases: [...names] }
      await asked(client.getNetwork(network).connect({ Container: container, EndpointConfig }))
    },
    async disconnect(network, container) {
      await asked(client.getNetwork(network).disconnect({ Container: container, Force: true }))
    },
  }
}

function createVolumes(client: Dockerode): DockerVolumes {
  return {
    async find(name) {
      const found = await askedIfThere(client.getVolume(name).inspect())
      return found && { labels: found.Labels ?? {} }
    },
    create: async (name, labels) => void (await asked(client.createVolume({ Name: name, Labels: { ...labels } }))),
    remove: async (name) => void (await askedIfThere(client.getVolume(name).remove())),
  }
}

function unreachable(error: unknown, endpoint: DockerEndpoint): unknown {
  const code = errnoOf(error)
  if (!isConnectionFailure(error) && !(error instanceof DockerError)) return error
  const where = endpoint.kind === 'socket' ? endpoint.path : hostOf(endpoint).replace('tcp://', '')
  if (code === 'EACCES' || code === 'EPERM')
    return new MirrorError(`You may not use the Docker engine at ${where}: permission denied.`, {
      exit: exitCode.missing,
      hints: [
        'sudo usermod -aG docker "$USER"   (then log in again)',
        'mirror up --runtime process   (as a plain process, without Docker)',
      ],
      cause: error,
    })
  return new MirrorError(`No Docker engine answers at ${where}: ${(error as Error).message}.`, {
    exit: exitCode.missing,
    hints: ['docker info   (says what is wrong)', 'mirror up --runtime process   (as a plain process, without Docker)'],
    cause: error,
  })
}
