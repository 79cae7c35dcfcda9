import { join } from 'node:path'
import { getKindNetworkName } from '../docker/engine.ts'
import { pathExists } from '../lib/fs.ts'
import { getDockerNetworkLocation, isLoopbackUrl, getProgramVersion } from './address.ts'
import { getRegistryName } from './containerd/hosts-toml.ts'
import { localFiles } from './files/local.ts'
import { printKaniko } from './kaniko.ts'
import type {
  ClientAdapter,
  ClientLocation,
  ClientName,
  ConfigTarget,
  Machine,
  MirrorForClient,
  PrintedConfig,
} from './types.ts'

/**
 * Describes a client that is configured by flags, environment variables or a line in the user's own file: mirror writes no file for
 * it.
 */
interface PrintedClient {
  /** Has the meaning of `ClientAdapter.summary`. */
  readonly summary: string
  /** Has the meaning of `ClientAdapter.find`. */
  readonly find: ClientAdapter['find']
  /** Returns the location of the program that sends the requests to the mirror. */
  readonly locate: (machine: Machine) => ClientLocation
  /** Prints the settings. Pure. `version`: the client's version as the user gave it; undefined when unknown. */
  readonly print: (mirror: MirrorForClient, version?: string) => PrintedConfig
}

const localhost: ClientLocation = { in: 'host' }

/** Lists the printed clients, a row each. */
export const printedClients = {
  testcontainers: {
    summary: 'Testcontainers: an environment variable',
    async find({ home }) {
      return (await pathExists(join(home, '.testcontainers.properties'))) ? 'testcontainers' : undefined
    },
    // Locate the Docker engine, which pulls the images.
    locate: ({ platform }) =>
      platform === 'linux' ? localhost : { in: 'vm', what: 'the Docker engine', hostName: 'host.docker.internal' },
    print: printTestcontainers,
  },
  skaffold: {
    summary: 'skaffold: the registry to push to',
    find: (machine) => findProgram(machine, 'skaffold'),
    locate: () => localhost,
    print: (mirror) =>
      printPusher(mirror, 'skaffold', 'mirror configure docker, or kaniko', (name) => ({
        todo: `in other clusters: skaffold config set default-repo ${name}, or the environment variable on stdout`,
        output: `SKAFFOLD_DEFAULT_REPO=${name}\n`,
      })),
  },
  tilt: {
    summary: 'tilt: the registry to push to',
    find: (machine) => findProgram(machine, 'tilt'),
    locate: () => localhost,
    print: (mirror) =>
      printPusher(mirror, 'Tilt', 'mirror configure docker', (name) => ({
        todo: 'in other clusters: put the line on stdout into the Tiltfile',
        output: `default_registry('${name}')\n`,
      })),
  },
  kaniko: {
    summary: 'kaniko: flags, environment variables and a sample Pod',
    // Find none: kaniko is an image and is never installed.
    find: async () => undefined,
    // Assume a cluster of kind, where its containers most likely run.
    locate: (machine) => getDockerNetworkLocation(machine, 'kaniko containers', getKindNetworkName(machine.env)),
    print: printKaniko,
  },
} as const satisfies Partial<Record<ClientName, PrintedClient>>

/** Makes the adapter of a printed client from its row. */
export function createPrintedAdapter(client: keyof typeof printedClients): ClientAdapter {
  const { summary, find, locate, print }: PrintedClient = printedClients[client]
  const createTarget = (machine: Machine, version?: string): ConfigTarget => ({
    id: 'printed',
    title: 'what to set (on stdout)',
    details: {},
    location: locate(machine),
    files: localFiles,
    inputs: { files: [], trees: [] },
    plan: (mirror) => ({ changes: [], ...print(mirror, version) }),
    strip: () => [],
    reasons: [],
  })
  return {
    client,
    summary,
    find,
    findTargets: async (machine, { clientVersion }) => [createTarget(machine, clientVersion)],
    restoreTarget: (machine) => createTarget(machine),
  }
}

/** Testcontainers puts a prefix before the names of Docker Hub's images; the Docker engine then pulls by the prefixed name. */
function printTestcontainers({ cache, ca }: MirrorForClient): PrintedConfig {
  const { host, protocol } = new URL(cache)
  const prefix = `${host}/docker.io/`
  return {
    notes: [
      'Only images of Docker Hub get the prefix; pulls from other registries use the mirror if the engine does: mirror configure docker.',
      `Testcontainers for Java, Go and .NET also read it from ~/.testcontainers.properties: hub.image.name.prefix=${prefix}`,
    ],
    todo: [
      'set it where your tests run: env $(mirror configure testcontainers) npm test',
      ...(protocol === 'http:' && !isLoopbackUrl(cache)
        ? [`name ${host} under insecure-registries of the Docker engine, which pulls by that name`]
        : []),
      ...(ca !== undefined
        ? ["have the engine, which pulls by that name, trust the mirror's CA: mirror configure docker"]
        : []),
    ],
    output: `TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX=${prefix}\n`,
  }
}

/**
 * Prints the setting of a client that pushes from this machine. The client finds the registry by the ConfigMap of the cluster;
 * `print` returns the setting for clusters without one. `builders`: the commands that configure the pulls of base images.
 */
function printPusher(
  { registry }: MirrorForClient,
  client: string,
  builders: string,
  print: (registryName: string) => { readonly todo: string; readonly output: string },
): PrintedConfig {
  const base = `Base images come from the mirror if the builder uses it: ${builders}.`
  if (registry === undefined) {
    const nothing = `The mirror has no registry for pushed images: there is nothing to tell ${client}.`
    return { notes: [nothing, base], todo: [] }
  }
  const name = getRegistryName(registry)
  const { todo, output } = print(name)
  return {
    notes: [
      `In clusters that say so (mirror configure kind --cluster NAME, k3d --cluster NAME) ${client} finds ${name} by itself.`,
      base,
    ],
    todo: [todo],
    output,
  }
}

async function findProgram(machine: Machine, program: string): Promise<string | undefined> {
  const version = await getProgramVersion(machine, program, 'version')
  return version && `${program} ${version}`
}
