import { join } from 'node:path'
import { stringify } from 'yaml'
import { kindNetworkName } from '../docker/engine.ts'
import { isThere } from '../lib/fs.ts'
import { dockerNetworkHome, isLoopback, versionOf } from './address.ts'
import { registryName } from './containerd/hosts-toml.ts'
import { caFileName } from './files/kinds.ts'
import { localFiles } from './files/local.ts'
import type {
  ClientAdapter,
  ClientLocation,
  ClientOptions,
  ConfigTarget,
  ConfigPlan,
  Machine,
  MirrorForClient,
} from './types.ts'

/** A client that is told by flags, environment or a line of its own: all is printed, and nothing written. */
function printedTarget(home: ClientLocation, plan: (mirror: MirrorForClient) => ConfigPlan): ConfigTarget {
  return {
    id: 'printed',
    title: 'what to set (on stdout)',
    details: {},
    location: home,
    files: localFiles,
    wants: { files: [], trees: [] },
    plan: (mirror) => plan(mirror),
    strip: () => [],
    reasons: [],
  }
}

/** Testcontainers puts a prefix before the names of Docker Hub's images; the Docker engine then pulls by that name. */
function planTestcontainers({ cache, ca }: MirrorForClient): ConfigPlan {
  const { host, protocol } = new URL(cache)
  const prefix = `${host}/docker.io/`
  return {
    changes: [],
    notes: [
      'Only images of Docker Hub get the prefix; those of other registries come through the mirror where the engine does: mirror configure docker.',
      `Testcontainers for Java, Go and .NET also read it from ~/.testcontainers.properties: hub.image.name.prefix=${prefix}`,
    ],
    todo: [
      'set it where your tests run: env $(mirror configure testcontainers) npm test',
      ...(protocol === 'http:' && !isLoopback(cache)
        ? [`name ${host} under insecure-registries of the Docker engine, which pulls by that name`]
        : []),
      ...(ca !== undefined
        ? ["have the engine, which pulls by that name, trust the mirror's CA: mirror configure docker"]
        : []),
    ],
    output: `TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX=${prefix}\n`,
  }
}

/** Testcontainers, in whatever language. */
export const testcontainersAdapter: ClientAdapter = {
  client: 'testcontainers',
  summary: 'Testcontainers: an environment variable',

  async find({ home }) {
    return (await isThere(join(home, '.testcontainers.properties'))) ? 'testcontainers' : undefined
  },

  async targets(machine) {
    return [printedTarget(engineHome(machine), planTestcontainers)]
  },

  recall: (machine) => printedTarget(engineHome(machine), planTestcontainers),
}

/** It is the Docker engine that pulls. */
function engineHome({ platform }: Machine): ClientLocation {
  if (platform === 'linux') return { in: 'host' }
  return { in: 'vm', what: 'the Docker engine', hostName: 'host.docker.internal' }
}

/** skaffold finds the registry by the ConfigMap in the cluster; in others it is told by its environment. */
export function planSkaffold({ registry }: MirrorForClient): ConfigPlan {
  const base = 'Base images come through the mirror where the builder does: mirror configure docker, or kaniko.'
  if (registry === undefined)
    return {
      changes: [],
      notes: ['The mirror has no registry for pushed images: there is nothing to tell skaffold.', base],
      todo: [],
    }
  const name = registryName(registry)
  return {
    changes: [],
    notes: [
      `In clusters that say so (mirror configure kind --cluster NAME, k3d --cluster NAME) skaffold finds ${name} by itself.`,
      base,
    ],
    todo: [`in other clusters: skaffold config set default-repo ${name}, or the environment variable on stdout`],
    output: `SKAFFOLD_DEFAULT_REPO=${name}\n`,
  }
}

/** skaffold, which pushes from this machine. */
export const skaffoldAdapter: ClientAdapter = {
  client: 'skaffold',
  summary: 'skaffold: the registry to push to',

  async find(machine) {
    const version = await versionOf(machine, 'skaffold', 'version')
    return version && `skaffold ${version}`
  },

  async targets() {
    return [printedTarget({ in: 'host' }, planSkaffold)]
  },

  recall: () => printedTarget({ in: 'host' }, planSkaffold),
}

/** Tilt finds the registry by the ConfigMap in the cluster; in others the Tiltfile names it. */
export function planTilt({ registry }: MirrorForClient): ConfigPlan {
  const base = 'Base images come through the mirror where the builder does: mirror configure docker.'
  if (registry === undefined)
    return {
      changes: [],
      notes: ['The mirror has no registry for pushed images: there is nothing to tell Tilt.', base],
      todo: [],
    }
  const name = registryName(registry)
  return {
    changes: [],
    notes: [
      `In clusters that say so (mirror configure kind --cluster NAME, k3d --cluster NAME) Tilt finds ${name} by itself.`,
      base,
    ],
    todo: ['in other clusters: put the line on stdout into the Tiltfile'],
    output: `default_registry('${name}')\n`,
  }
}

/** tilt, which pushes from this machine. */
export const tiltAdapter: ClientAdapter = {
  client: 'tilt',
  summary: 'tilt: the registry to push to',

  async find(machine) {
    const version = await versionOf(machine, 'tilt', 'version')
    return version && `tilt ${version}`
  },

  async targets() {
    return [printedTarget({ in: 'host' }, planTilt)]
  },

  recall: () => printedTarget({ in: 'host' }, planTilt),
}

/** kaniko is told by flags: they are printed, with the environment and a Pod that has them. */
export function planKaniko(mirror: MirrorForClient, version: string | undefined): ConfigPlan {
  const hasMap = version === undefined || !isBefore(version, 1, 22)
  const flags = kanikoFlags(mirror, hasMap)
  const output = [
    ...flags,
    '',
    '# or, but for the other flags, by the environment:',
    ...(hasMap
      ? [`KANIKO_REGISTRY_MAP=${mappings(mirror).join(';')}`]
      : [`KANIKO_REGISTRY_MIRROR=${hubMirror(mirror)}`]),
    '',
    '# or as a Pod:',
    // A Pod has what is trusted from a ConfigMap.
    ...(mirror.ca === undefined ? [] : [`${yaml(configMap(mirror.ca))}---`]),
    yaml(pod(mirror, flags)),
  ].join('\n')
  const todo =
    mirror.ca === undefined
      ? []
      : [`have the mirror's CA in the container as ${caFile}; the ConfigMap has it for a Pod`]
  const notes = hasMap
    ? [
        version === undefined
          ? 'For kaniko 1.22 or newer, older ones mirror Docker Hub only: --client-version.'
          : undefined,
      ]
    : ['kaniko before 1.22 mirrors Docker Hub only.']
  return { changes: [], notes: notes.filter((note) => note !== undefined), todo, output }
}

/** Where the executor finds the mirror's CA: below its own folder, which stays when a build empties all others. */
const caFolder = '/kaniko/mirror'
const caFile = `${caFolder}/${caFileName}`
const caVolume = 'mirror-ca'

function yaml(value: unknown): string {
  return stringify(value, { lineWidth: 0, indentSeq: false })
}

/**
 * The flags of the executor, and of the warmer. A mirror is host, port and path without a scheme, and the first part of the path
 * must have no dot: kaniko would take it for a registry.
 * https://github.com/osscontainertools/kaniko#flag---registry-map
 */
function kanikoFlags(mirror: MirrorForClient, hasMap: boolean): string[] {
  return [
    ...(hasMap
      ? mappings(mirror).map((mapping) => `--registry-map=${mapping}`)
      : [`--registry-mirror=${hubMirror(mirror)}`]),
    ...insecureFlag(mirror.cache),
    ...caFlag(mirror.cache, mirror.ca),
    ...(mirror.fallback ? [] : ['--skip-default-registry-fallback']),
  ]
}

function mappings({ cache, registries }: MirrorForClient): string[] {
  const { host } = new URL(cache)
  // Its name for Docker Hub; `docker.io` would never be looked up.
  return registries.map((name) => `${name === 'docker.io' ? 'index.docker.io' : name}=${host}/upstream/${name}`)
}

function hubMirror({ cache }: MirrorForClient): string {
  return `${new URL(cache).host}/upstream/docker.io`
}

/** The registry that has to be named as one without TLS: kaniko knows that by itself of loopback and private addresses. */
function insecureFlag(url: string): string[] {
  const { protocol, hostname, host } = new URL(url)
  const isKnown =
    hostname === 'localhost' ||
    hostname.endsWith('.localhost') ||
    hostname === '127.0.0.1' ||
    hostname === '[::1]' ||
    isPrivate(hostname)
  return protocol === 'http:' && !isKnown ? [`--insecure-registry=${host}`] : []
}

function caFlag(url: string, ca: string | undefined): string[] {
  return ca === undefined ? [] : [`--registry-certificate=${new URL(url).host}=${caFile}`]
}

function configMap(ca: string) {
  return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: caVolume }, data: { [caFileName]: ca } }
}

/** RFC 1918. */
function isPrivate(hostname: string): boolean {
  return /^(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.[\d.]+$/.test(hostname)
}

function pod({ registry, ca }: MirrorForClient, flags: readonly string[]) {
  const push = registry === undefined ? ['--no-push'] : [`--destination=${new URL(registry).host}/app:dev`]
  const insecure = registry === undefined ? [] : [...insecureFlag(registry), ...caFlag(registry, ca)]
  const mounts = [
    { name: 'workspace', mountPath: '/workspace' },
    ...(ca === undefined ? [] : [{ name: caVolume, mountPath: caFolder, readOnly: true }]),
  ]
  const volumes = [
    { name: 'workspace', emptyDir: {} },
    ...(ca === undefined ? [] : [{ name: caVolume, configMap: { name: caVolume } }]),
  ]
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'kaniko' },
    spec: {
      restartPolicy: 'Never',
      containers: [
        {
          name: 'kaniko',
          image: 'ghcr.io/osscontainertools/kaniko:latest',
          args: ['--context=dir:///workspace', ...push, ...flags, ...insecure],
          volumeMounts: mounts,
        },
      ],
      volumes,
    },
  }
}

function isBefore(version: string, major: number, minor: number): boolean {
  const [, one = '0', two = '0'] = /^v?(\d+)(?:\.(\d+))?/.exec(version) ?? []
  return Number(one) < major || (Number(one) === major && Number(two) < minor)
}

/** kaniko, which runs in containers: of a cluster of kind, as far as can be known. */
export const kanikoAdapter: ClientAdapter = {
  client: 'kaniko',
  summary: 'kaniko: flags, environment, and a Pod that has them',

  // It is an image; it is never installed.
  async find() {
    return undefined
  },

  async targets(machine, options) {
    return [placeFor(machine, options)]
  },

  recall: (machine) => placeFor(machine, {}),
}

function placeFor(machine: Machine, { clientVersion }: Partial<ClientOptions>) {
  const home = dockerNetworkHome(machine, 'kaniko containers', kindNetworkName(machine.env))
  return printedTarget(home, (mirror) => planKaniko(mirror, clientVersion))
}
