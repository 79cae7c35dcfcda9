import { MirrorError } from '../lib/errors.ts'
import { isObject } from '../lib/json.ts'
import { getYamlValue, readYamlText } from './edit/yaml.ts'
import { isWrittenByMirror } from './files/kinds.ts'
import type { Finding } from './types.ts'

/** Finds the known faults of a registries.yaml of k3s or k3d. https://docs.k3s.io/installation/private-registry */
export function inspectRegistriesYaml(path: string, text: string | undefined): readonly Finding[] {
  if (text === undefined) return []
  const mend = (advice: string): Finding['mend'] => (isWrittenByMirror(text) ? 'configure' : { advice })
  let mirrors: unknown
  try {
    mirrors = getYamlValue(readYamlText(text, path), ['mirrors'])
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return [{ fault: 'k3s.syntax', state: 'fail', where: path, saw: error.message, mend: mend(`Correct ${path}.`) }]
  }
  return Object.entries(isObject(mirrors) ? mirrors : {}).flatMap(([registry, entry]) => {
    const listed = isObject(entry) && Array.isArray(entry['endpoint']) ? (entry['endpoint'] as unknown[]) : []
    const endpoints = listed.filter((one) => typeof one === 'string')
    const findings: Finding[] = []
    const plain = endpoints.find((endpoint) => !/^https?:\/\//.test(endpoint))
    if (plain !== undefined)
      findings.push({
        fault: 'k3s.scheme',
        state: 'fail',
        where: path,
        saw: `${path} has the endpoint ${plain} for ${registry} without a scheme, so it is contacted by HTTPS.`,
        mend: mend(`Write "http://${plain}" in ${path}.`),
      })
    const twice = endpoints.find((endpoint, at) => endpoints.map(toKey).indexOf(toKey(endpoint)) !== at)
    if (twice !== undefined)
      findings.push({
        fault: 'k3s.duplicate',
        state: 'fail',
        where: path,
        saw: `${path} names the endpoint ${twice} for ${registry} twice, so containerd ignores its hosts.toml.`,
        mend: mend(`Remove one of the two from ${path}.`),
      })
    return findings
  })
}

function toKey(endpoint: string): string {
  return endpoint.replace(/\/+$/, '').toLowerCase()
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
