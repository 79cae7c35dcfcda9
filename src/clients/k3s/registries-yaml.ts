import { MirrorError } from '../../lib/errors.ts'
import { isObject } from '../../lib/json.ts'
import { builtInUpstreams } from '../../upstream/upstream.ts'
import { hubAliases } from '../address.ts'
import { getYamlValue, readYamlText } from '../edit/yaml.ts'
import { isWrittenByMirror } from '../files/kinds.ts'
import type { Finding } from '../types.ts'

/** Finds the known faults of a registries.yaml of k3s or k3d. https://docs.k3s.io/installation/private-registry */
export function inspectRegistriesYaml(
  path: string,
  text: string | undefined,
  cache: string | undefined,
): readonly Finding[] {
  if (text === undefined) return []
  const mend = (advice: string): Finding['mend'] => (isWrittenByMirror(text) ? 'configure' : { advice })
  let mirrors: unknown
  try {
    mirrors = getYamlValue(readYamlText(text, path), ['mirrors'])
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return [{ fault: 'k3s.syntax', state: 'fail', where: path, saw: error.message, mend: mend(`Correct ${path}.`) }]
  }
  const entries = Object.entries(isObject(mirrors) ? mirrors : {})
  const isUsed = entries.some(([, entry]) => leadsTo(entry, cache))
  return entries.flatMap(([registry, entry]) => {
    const listed = isObject(entry) && Array.isArray(entry['endpoint']) ? (entry['endpoint'] as unknown[]) : []
    const endpoints = listed.filter((one) => typeof one === 'string')
    const findings: Finding[] = []
    const add = (fault: string, state: Finding['state'], saw: string, advice: string) =>
      findings.push({ fault: `k3s.${fault}`, state, where: path, saw: `${path} ${saw}`, mend: mend(advice) })
    const single = isObject(entry) ? entry['endpoint'] : undefined
    if (single !== undefined && !Array.isArray(single))
      add(
        'syntax',
        'fail',
        `has an endpoint for ${registry} that is no list, so k3s does not start.`,
        `Write endpoint: [${JSON.stringify(single)}] in ${path}.`,
      )
    const name = registry.replace(/^https?:\/\//, '').replace(/\/.*$/, '')
    if (name !== registry || hubAliases.has(name))
      add(
        'hub',
        'warn',
        `has an entry for ${registry}, which no image name begins with.`,
        `Write ${hubAliases.has(name) ? 'docker.io' : name} instead of ${registry} in ${path}.`,
      )
    const isServed = leadsTo(entry, cache)
    if (isServed && isObject(entry) && isObject(entry['rewrite']) && Object.keys(entry['rewrite']).length > 0)
      add(
        'rewrite',
        'warn',
        `rewrites the names of ${registry}, which the mirror does not find then.`,
        `Remove rewrite of ${registry} from ${path}.`,
      )
    if (isUsed && !isServed && builtInUpstreams.has(registry))
      add(
        'bypass',
        'warn',
        `does not name the mirror for ${registry}, so pulls from there bypass it.`,
        `Add ${JSON.stringify(cache)} as the first endpoint of ${registry} in ${path}.`,
      )
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

/** Reports whether an entry has the mirror among its endpoints. */
function leadsTo(entry: unknown, cache: string | undefined): boolean {
  if (cache === undefined || !isObject(entry)) return false
  const endpoints = Array.isArray(entry['endpoint']) ? entry['endpoint'] : []
  return endpoints.some(
    (one) => typeof one === 'string' && URL.canParse(one) && new URL(one).host === new URL(cache).host,
  )
}

function toKey(endpoint: string): string {
  return endpoint.replace(/\/+$/, '').toLowerCase()
}
