import { stringify } from 'yaml'
import { caFileName } from './ca-file.ts'
import type { ConfigPlan, MirrorForClient } from './client-config.ts'

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
