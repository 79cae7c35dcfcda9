import { posix } from 'node:path'
import { stringify } from 'yaml'
import { type RegistrySection, registrySection } from './containerd-registry-section.ts'
import { addYamlItem, removeFromYaml } from './edit-yaml.ts'
import { usualConfigPath } from './node-hosts.ts'
import { writtenByMirror } from './written-by-mirror.ts'
import { type YamlPath, type YamlText, readYamlText, yamlRefusal, yamlValue } from './yaml-text.ts'

/** What nodes mount: a folder of this machine, by the name of the folder below their `config_path`. */
export interface KindMount {
  readonly hostPath: string
  readonly name: string
}

/**
 * What makes every containerd that kind has shipped look at the folder, whatever its version: nodes' own files are of version 2,
 * and kind passes over a patch of another one. The comment tells it from the user's own, which is the same in many tutorials.
 * https://kind.sigs.k8s.io/docs/user/configuration/#containerdconfigpatches
 */
const patch = `# added by mirror\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "${usualConfigPath}"`
const header = { kind: 'Cluster', apiVersion: 'kind.x-k8s.io/v1alpha4' }

/** A cluster file for a cluster of one node. */
export function newClusterFile(mounts: readonly KindMount[]): string {
  const extraMounts = mounts.map((mount) => mountEntry(mount, usualConfigPath))
  const cluster = { ...header, containerdConfigPatches: [patch], nodes: [{ role: 'control-plane', extraMounts }] }
  return writtenByMirror + stringify(cluster, { lineWidth: 0, indentSeq: false })
}

/**
 * The user's cluster file with the patch and, in every node, the mounts; what is there already is not repeated. Throws a
 * MirrorError (usage) with line and column for a file that cannot have both its own settings and ours.
 */
export function mergeClusterFile(text: string, path: string, mounts: readonly KindMount[]): string {
  let yaml = readYamlText(text, path)
  if (yamlValue(yaml) === null) return `${text}${/[^\n]$/.test(text) ? '\n' : ''}${newClusterFile(mounts)}`
  for (const [key, value] of Object.entries(header)) {
    if (yamlValue(yaml, [key]) !== value)
      throw yamlRefusal(yaml, [key], `this is no cluster file with ${key}: ${value}`)
  }
  const section = patchedSection(yaml)
  const configPath = section.configPaths[0] ?? usualConfigPath
  if (section.configPaths.length === 0) yaml = addYamlItem(yaml, ['containerdConfigPatches'], patch)
  const entries = mounts.map((mount) => mountEntry(mount, configPath))
  const nodes = yamlValue(yaml, ['nodes']) ?? []
  if (!Array.isArray(nodes)) throw yamlRefusal(yaml, ['nodes'], 'there should be a list of nodes here')
  if (nodes.length === 0) return addYamlItem(yaml, ['nodes'], { role: 'control-plane', extraMounts: entries }).text
  for (const at of nodes.keys()) {
    for (const entry of entries) {
      if (isMounted(yaml, ['nodes', at, 'extraMounts'], entry, configPath)) continue
      yaml = addYamlItem(yaml, ['nodes', at, 'extraMounts'], entry)
    }
  }
  return yaml.text
}

/** The cluster file without the mounts of folders below `folder`, and without the patch when it is ours. */
export function stripClusterFile(text: string, path: string, folder: string): string {
  let yaml = readYamlText(text, path)
  const nodes = yamlValue(yaml, ['nodes'])
  for (const at of Array.isArray(nodes) ? nodes.keys() : []) {
    for (let entry = listAt(yaml, ['nodes', at, 'extraMounts']).length - 1; entry >= 0; entry -= 1) {
      const hostPath = yamlValue(yaml, ['nodes', at, 'extraMounts', entry, 'hostPath'])
      if (typeof hostPath === 'string' && isBelow(folder, hostPath))
        yaml = removeFromYaml(yaml, ['nodes', at, 'extraMounts', entry])
    }
  }
  const ours = listAt(yaml, ['containerdConfigPatches']).indexOf(patch)
  return (ours === -1 ? yaml : removeFromYaml(yaml, ['containerdConfigPatches', ours])).text
}

function isBelow(folder: string, path: string): boolean {
  return path.startsWith(folder) && /^[\\/]/.test(path.slice(folder.length))
}

function mountEntry({ hostPath, name }: KindMount, configPath: string): KindMountEntry {
  return { hostPath, containerPath: posix.join(configPath, name), readOnly: true }
}

interface KindMountEntry {
  readonly hostPath: string
  readonly containerPath: string
  readonly readOnly: true
}

/** What the user's own patches do, taken together. */
function patchedSection(yaml: YamlText): RegistrySection {
  let configPaths: readonly string[] = []
  for (const [at, text] of listAt(yaml, ['containerdConfigPatches']).entries()) {
    const place = ['containerdConfigPatches', at]
    if (typeof text !== 'string')
      throw yamlRefusal(yaml, place, 'there should be a text here, which kind merges into config.toml')
    const section = registrySection(`${yaml.path}, ${place.join('.')}`, text)
    if (section.oldKey !== undefined) throw oldWay(yaml, place, section.oldKey)
    if (section.configPaths.length > 0) configPaths = section.configPaths
  }
  for (const [at, text] of listAt(yaml, ['containerdConfigPatchesJSON6902']).entries()) {
    const key = typeof text === 'string' ? /registry\/(?:mirrors|configs)/.exec(text)?.[0] : undefined
    if (key !== undefined) throw oldWay(yaml, ['containerdConfigPatchesJSON6902', at], key.replace('/', '.'))
  }
  return { configPaths, oldKey: undefined }
}

function oldWay(yaml: YamlText, place: YamlPath, key: string) {
  return yamlRefusal(
    yaml,
    place,
    `this patch sets ${key}, and a containerd that has both that and config_path pulls nothing`,
    [
      `take the patch out of ${yaml.path}: the mirror serves every registry, and localhost:5001 for images of your own`,
      'mirror registries of your own in mirror.yaml, under upstreams',
    ],
  )
}

function isMounted(yaml: YamlText, list: YamlPath, wanted: KindMountEntry, configPath: string): boolean {
  for (const [at, entry] of listAt(yaml, list).entries()) {
    const { hostPath, containerPath } = (entry ?? {}) as Record<string, unknown>
    if (typeof containerPath !== 'string') continue
    const there = posix.resolve('/', containerPath)
    if (there === wanted.containerPath && hostPath === wanted.hostPath) return true
    const what = `another folder is mounted at ${there}`
    if (there === wanted.containerPath) throw yamlRefusal(yaml, [...list, at], `${what}, where the mirror's belongs`)
    if (`${configPath}/`.startsWith(`${there}/`))
      throw yamlRefusal(yaml, [...list, at], `${what}, where folders of the mirror belong`, [
        'mirror configure kind --cluster NAME   (puts them there once the cluster runs)',
      ])
  }
  return false
}

function listAt(yaml: YamlText, path: YamlPath): unknown[] {
  const list = yamlValue(yaml, path) ?? []
  if (!Array.isArray(list)) throw yamlRefusal(yaml, path, 'there should be a list here')
  return list
}
