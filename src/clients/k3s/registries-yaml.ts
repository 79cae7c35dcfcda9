import { MirrorError } from '../../lib/errors.ts'
import { isObject } from '../../lib/json.ts'
import { getYamlValue, readYamlText } from '../edit/yaml.ts'
import { isWrittenByMirror } from '../files/kinds.ts'
import type { Finding } from '../types.ts'

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
