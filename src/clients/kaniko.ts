import { stringify } from 'yaml'
import { caFileName } from './files/kinds.ts'
import type { Finding, MirrorForClient, PrintedConfig } from './types.ts'

/** Holds the mount folder of the mirror's CA. It lies below kaniko's own folder because a build empties all others. */
const caFolder = '/kaniko/mirror'
const caFile = `${caFolder}/${caFileName}`
const caVolume = 'mirror-ca'

/**
 * Prints the flags of the executor, the same settings as environment variables, and a Pod with these flags. `version`: kaniko's;
 * undefined stands for 1.22 or newer.
 */
export function printKaniko(mirror: MirrorForClient, version: string | undefined): PrintedConfig {
  const hasMap = version === undefined || !isBefore(version, 1, 22)
  const flags = toFlags(mirror, hasMap)
  const output = [
    ...flags,
    '',
    `# or an environment variable in place of ${hasMap ? '--registry-map' : '--registry-mirror'}:`,
    ...(hasMap
      ? [`KANIKO_REGISTRY_MAP=${toRegistryMap(mirror).join(';')}`]
      : [`KANIKO_REGISTRY_MIRROR=${toHubMirror(mirror)}`]),
    '',
    '# or as a Pod:',
    // Print the ConfigMap from which the Pod mounts the CA.
    ...(mirror.ca === undefined ? [] : [`${toYaml(toConfigMap(mirror.ca))}---`]),
    toYaml(toPod(mirror, flags)),
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
  return { notes: notes.filter((note) => note !== undefined), todo, output }
}

function toYaml(value: unknown): string {
  return stringify(value, { lineWidth: 0, indentSeq: false })
}

/**
 * Returns the flags of the executor and the warmer. A mirror is written as host, port and path without a scheme. The first part of
 * the path must not contain a dot, because kaniko would parse it as a registry.
 * https://github.com/osscontainertools/kaniko#flag---registry-map
 */
function toFlags(mirror: MirrorForClient, hasMap: boolean): string[] {
  return [
    ...(hasMap
      ? toRegistryMap(mirror).map((mapping) => `--registry-map=${mapping}`)
      : [`--registry-mirror=${toHubMirror(mirror)}`]),
    ...toInsecureFlags(mirror.cache),
    ...toCaFlags(mirror.cache, mirror.ca),
    ...(mirror.fallback ? [] : ['--skip-default-registry-fallback']),
  ]
}

function toRegistryMap({ cache, registries }: MirrorForClient): string[] {
  const { host } = new URL(cache)
  // Name Docker Hub as kaniko looks it up: `index.docker.io`, never `docker.io`.
  return registries.map((name) => `${name === 'docker.io' ? 'index.docker.io' : name}=${host}/upstream/${name}`)
}

function toHubMirror({ cache }: MirrorForClient): string {
  return `${new URL(cache).host}/upstream/docker.io`
}

/** Returns the flag for a registry without TLS; none for loopback and private addresses, where kaniko uses HTTP by itself. */
function toInsecureFlags(url: string): string[] {
  const { protocol, hostname, host } = new URL(url)
  const isHttpByDefault =
    hostname === 'localhost' ||
    hostname.endsWith('.localhost') ||
    hostname === '127.0.0.1' ||
    hostname === '[::1]' ||
    isPrivate(hostname)
  return protocol === 'http:' && !isHttpByDefault ? [`--insecure-registry=${host}`] : []
}

function toCaFlags(url: string, ca: string | undefined): string[] {
  return ca === undefined ? [] : [`--registry-certificate=${new URL(url).host}=${caFile}`]
}

function toConfigMap(ca: string) {
  return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: caVolume }, data: { [caFileName]: ca } }
}

/** Recognizes the private IPv4 addresses of RFC 1918. */
function isPrivate(hostname: string): boolean {
  return /^(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.[\d.]+$/.test(hostname)
}

function toPod({ registry, ca }: MirrorForClient, flags: readonly string[]) {
  const destination = registry === undefined ? ['--no-push'] : [`--destination=${new URL(registry).host}/app:dev`]
  const insecure = registry === undefined ? [] : [...toInsecureFlags(registry), ...toCaFlags(registry, ca)]
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
          args: ['--context=dir:///workspace', ...destination, ...flags, ...insecure],
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

/**
 * Finds the known faults of the variables with which kaniko maps registries. Its parser cuts a mapping at the first slash, and takes a
 * first part with a dot for a registry.
 */
export function inspectKanikoVariables(env: Readonly<Record<string, string | undefined>>): readonly Finding[] {
  const map = (env['KANIKO_REGISTRY_MAP'] ?? '').split(';').filter(Boolean)
  const hub = env['KANIKO_REGISTRY_MIRROR']
  const targets = [
    ...map.map((mapping) => ['KANIKO_REGISTRY_MAP', mapping.slice(mapping.indexOf('=') + 1)] as const),
    ...(hub ? [['KANIKO_REGISTRY_MIRROR', hub] as const] : []),
  ]
  const findings: Finding[] = []
  if (map.some((mapping) => mapping.startsWith('docker.io=')))
    findings.push({
      fault: 'kaniko.hub',
      state: 'fail',
      where: 'KANIKO_REGISTRY_MAP',
      saw: 'KANIKO_REGISTRY_MAP maps docker.io, which kaniko never looks up: its name for Docker Hub is index.docker.io.',
      mend: { command: 'mirror configure kaniko' },
    })
  for (const [where, target] of targets) {
    const why = target.includes('://')
      ? 'has a scheme, which kaniko takes for the registry'
      : /^[^/]+\/[^/]*[.:]/.test(target)
        ? 'has a path that begins with a host name, which kaniko takes for the registry'
        : undefined
    if (why !== undefined)
      findings.push({
        fault: 'kaniko.path',
        state: 'fail',
        where,
        saw: `${target} in ${where} ${why}.`,
        mend: { command: 'mirror configure kaniko' },
      })
  }
  return findings
}
