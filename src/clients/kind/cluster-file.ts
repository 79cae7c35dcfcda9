import { posix } from 'node:path'
import { stringify } from 'yaml'
import { shellWord } from '../../lib/process.ts'
import { headingOf, pluginOf, registrySection } from '../containerd/config-toml.ts'
import { hostsChanges, hostsFolders, usualConfigPath, withoutHosts } from '../containerd/hosts-toml.ts'
import {
  addYamlItem,
  readYamlText,
  removeFromYaml,
  type YamlPath,
  yamlRefusal,
  type YamlText,
  yamlValue,
} from '../edit/yaml.ts'
import { refuseOtherKinds, writtenByMirror } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesNow, MirrorForClient } from '../types.ts'

interface KindTarget {
  /** The folder of this machine whose folders the nodes mount. */
  readonly folder: string
  /** The user's cluster file; undefined: one is printed. */
  readonly file: string | undefined
  readonly join: (...parts: string[]) => string
}

/** Clusters to be made: their cluster file, and the folders that it has the nodes mount. */
export function planKind(mirror: MirrorForClient, { folder, file, join }: KindTarget, files: FilesNow): ConfigPlan {
  // Which containerd their nodes will have, nobody knows yet.
  const folders = hostsFolders(mirror, { referrers: false })
  const mounts = folders.map(({ name }) => ({ hostPath: join(folder, name), name }))
  const changes = hostsChanges(folders, folder, files, join)
  const notes = [`The nodes mount ${mounts.map(({ hostPath }) => hostPath).join(' and ')}.`]
  const todo = [
    'once the cluster runs, mirror configure kind --cluster NAME tells Tilt and skaffold about the registry',
  ]
  if (file === undefined) return { changes, notes, todo, output: newClusterFile(mounts) }
  const before = files.text(file)
  const merged =
    before === undefined ? { text: newClusterFile(mounts), notes: [] } : mergeClusterFile(before, file, mounts)
  const create = `kind create cluster --config ${shellWord(file)}   (a cluster that runs already: mirror configure kind --cluster NAME)`
  return {
    changes: [...changes, ...files.change(file, merged.text)],
    notes: [...notes, ...merged.notes],
    todo: [create, ...todo],
  }
}

/** See ConfigTarget.strip. */
export function stripKind(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { folder, file }: KindTarget,
  files: FilesNow,
): FileChange[] {
  const text = file === undefined ? undefined : files.text(file)
  return [
    ...withoutHosts(folder, mirror, files),
    ...(file === undefined || text === undefined ? [] : files.change(file, stripClusterFile(text, file, folder))),
  ]
}

/** What nodes mount: a folder of this machine, by the name of the folder below their `config_path`. */
interface KindMount {
  readonly hostPath: string
  readonly name: string
}

/** The version of the format that the nodes' own config.toml has, whatever their containerd. */
const nodeFormat = 2

/**
 * What makes every containerd that kind has shipped look at the folder, whatever its version: nodes' own files are of version 2,
 * and kind passes over a patch of another one. The comment tells it from the user's own, which is the same in many tutorials.
 * https://kind.sigs.k8s.io/docs/user/configuration/#containerdconfigpatches
 */
function patchFor(configPath: string): string {
  return `# added by mirror\n${headingOf(pluginOf(nodeFormat))}\n  config_path = ${JSON.stringify(configPath)}`
}

/** Such a patch, for whatever folder. */
const ownPatch =
  /^# added by mirror\n\[plugins\."io\.containerd\.grpc\.v1\.cri"\.registry\]\n {2}config_path = "[^"\n]*"\n?$/

const header = { kind: 'Cluster', apiVersion: 'kind.x-k8s.io/v1alpha4' }

/** A cluster file for a cluster of one node. */
function newClusterFile(mounts: readonly KindMount[]): string {
  const extraMounts = mounts.map((mount) => mountEntry(mount, usualConfigPath))
  const cluster = {
    ...header,
    containerdConfigPatches: [patchFor(usualConfigPath)],
    nodes: [{ role: 'control-plane', extraMounts }],
  }
  return writtenByMirror + stringify(cluster, { lineWidth: 0, indentSeq: false })
}

/** A cluster file with ours in it, and what there is to say about its own patches. */
interface MergedClusterFile {
  readonly text: string
  readonly notes: readonly string[]
}

/**
 * What is printed when there is no cluster file. kind takes an empty document for one with an unknown apiVersion and says just
 * that; it quotes the one it is given, so this one is the reason: `unknown apiVersion: none, because mirror configure kind failed…`.
 */
export function refusedClusterFile(reason: string): string {
  const apiVersion = `none, because mirror configure kind failed: ${reason}`
  return `# No cluster file.\n${stringify({ kind: header.kind, apiVersion }, { lineWidth: 0 })}`
}

/**
 * The user's cluster file with the patch and, in every node, the mounts; what is there already is not repeated. Throws a
 * MirrorError (usage) with line and column for a file that cannot have both its own settings and ours.
 */
function mergeClusterFile(text: string, path: string, mounts: readonly KindMount[]): MergedClusterFile {
  refuseOtherKinds(path, text, { kinds: ['kind cluster'], expected: 'a cluster file of kind' })
  let yaml = readYamlText(text, path)
  if (yamlValue(yaml) === null)
    return { text: `${text}${/[^\n]$/.test(text) ? '\n' : ''}${newClusterFile(mounts)}`, notes: [] }
  for (const [key, value] of Object.entries(header)) {
    if (yamlValue(yaml, [key]) !== value)
      throw yamlRefusal(yaml, [key], `this is no cluster file with ${key}: ${value}`)
  }
  const { configPath: effective, meant, notes } = patchedSection(yaml)
  const configPath = effective ?? meant ?? usualConfigPath
  if (effective === undefined) yaml = addYamlItem(yaml, ['containerdConfigPatches'], patchFor(configPath))
  const entries = mounts.map((mount) => mountEntry(mount, configPath))
  const nodes = yamlValue(yaml, ['nodes']) ?? []
  if (!Array.isArray(nodes)) throw yamlRefusal(yaml, ['nodes'], 'there should be a list of nodes here')
  if (nodes.length === 0) {
    const node = { role: 'control-plane', extraMounts: entries }
    return { text: addYamlItem(yaml, ['nodes'], node).text, notes }
  }
  for (const at of nodes.keys()) {
    for (const entry of entries) {
      if (isMounted(yaml, ['nodes', at, 'extraMounts'], entry, configPath)) continue
      yaml = addYamlItem(yaml, ['nodes', at, 'extraMounts'], entry)
    }
  }
  return { text: yaml.text, notes }
}

/** The cluster file without the mounts of folders below `folder`, and without the patch when it is ours. */
function stripClusterFile(text: string, path: string, folder: string): string {
  let yaml = readYamlText(text, path)
  const nodes = yamlValue(yaml, ['nodes'])
  for (const at of Array.isArray(nodes) ? nodes.keys() : []) {
    for (let entry = listAt(yaml, ['nodes', at, 'extraMounts']).length - 1; entry >= 0; entry -= 1) {
      const hostPath = yamlValue(yaml, ['nodes', at, 'extraMounts', entry, 'hostPath'])
      if (typeof hostPath === 'string' && isBelow(folder, hostPath))
        yaml = removeFromYaml(yaml, ['nodes', at, 'extraMounts', entry])
    }
  }
  const patches = listAt(yaml, ['containerdConfigPatches'])
  const ours = patches.findIndex((patch) => typeof patch === 'string' && ownPatch.test(patch))
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

interface PatchedSection {
  /** The folder that every containerd looks at; undefined: some look at none. */
  readonly configPath: string | undefined
  /** A folder that is named where not every containerd looks. */
  readonly meant: string | undefined
  readonly notes: readonly string[]
}

/** What the user's own patches do, taken together. */
function patchedSection(yaml: YamlText): PatchedSection {
  let configPath: string | undefined
  let meant: string | undefined
  const notes: string[] = []
  for (const [at, text] of listAt(yaml, ['containerdConfigPatches']).entries()) {
    const place = ['containerdConfigPatches', at]
    if (typeof text !== 'string')
      throw yamlRefusal(yaml, place, 'there should be a text here, which kind merges into config.toml')
    const where = `${yaml.path}, ${place.join('.')}`
    const section = registrySection(where, text, { version: nodeFormat })
    if (section.oldKey !== undefined) throw oldWay(yaml, place, section.oldKey)
    if (section.version === nodeFormat && section.setsPath) configPath = section.configPaths[0]
    if (section.version !== nodeFormat && (section.configPaths.length > 0 || section.ineffective.length > 0)) {
      meant ??= section.configPaths[0] ?? section.ineffective.flatMap(({ configPaths }) => configPaths)[0]
      notes.push(
        `${where} may have no effect: config.toml in kind's nodes has version = ${nodeFormat}, and kind passes over patches ` +
          `with version = ${section.version}.`,
      )
    } else
      for (const { heading, configPaths, others } of section.ineffective) {
        if (configPaths.length === 0) continue
        if (others.length > 0)
          throw yamlRefusal(
            yaml,
            place,
            `${others.join(' and ')} in ${heading} would be lost: containerd takes ${headingOf(pluginOf(nodeFormat))}, which its version 1 needs, in place of that section`,
            [`write all of it under ${headingOf(pluginOf(nodeFormat))}, which every version of containerd reads`],
          )
        meant ??= configPaths[0]
        notes.push(
          `${heading} in ${where} is not what every containerd reads there: the mirror's patch says the same in ` +
            `${headingOf(pluginOf(nodeFormat))}.`,
        )
      }
  }
  // kind applies these after all others.
  for (const [at, text] of listAt(yaml, ['containerdConfigPatchesJSON6902']).entries()) {
    const place = ['containerdConfigPatchesJSON6902', at]
    const key = typeof text === 'string' ? /registry\/(?:mirrors|configs)/.exec(text)?.[0] : undefined
    if (key !== undefined) throw oldWay(yaml, place, key.replace('/', '.'))
    for (const { path, value } of typeof text === 'string' ? jsonPatch(text) : []) {
      const patched = pathPatched(path, value)
      if (patched === undefined) continue
      if (patched.configPath === undefined)
        throw yamlRefusal(
          yaml,
          place,
          `this patch takes away what makes containerd look for the mirror: config_path in ${headingOf(patched.plugin)}`,
        )
      if (patched.plugin === pluginOf(nodeFormat)) configPath = patched.configPath.split(':').find(Boolean)
      else meant ??= patched.configPath.split(':').find(Boolean)
    }
  }
  return { configPath, meant, notes }
}

interface JsonPatchStep {
  readonly path: readonly string[]
  /** Undefined: what is there is taken away. */
  readonly value: unknown
}

/** The steps of a JSON patch that set something or take it away; none for what is no such patch, which kind will say. */
function jsonPatch(text: string): JsonPatchStep[] {
  return stepsIn(text).flatMap((step) => {
    const { op, path, value } = (step ?? {}) as Record<string, unknown>
    if (typeof path !== 'string' || !['add', 'replace', 'remove'].includes(String(op))) return []
    const keys = path.split('/').slice(1)
    return [
      {
        path: keys.map((key) => key.replaceAll('~1', '/').replaceAll('~0', '~')),
        value: op === 'remove' ? undefined : value,
      },
    ]
  })
}

function stepsIn(text: string): unknown[] {
  try {
    const steps: unknown = JSON.parse(text)
    return Array.isArray(steps) ? steps : []
  } catch (error) {
    if (error instanceof SyntaxError) return []
    throw error
  }
}

/** What such a step means for the section of a plugin; undefined where it has nothing to do with `config_path`. */
function pathPatched(
  path: readonly string[],
  value: unknown,
): { readonly plugin: string; readonly configPath: string | undefined } | undefined {
  for (const plugin of [1, 2, 3].map((version) => pluginOf(version))) {
    const target = ['plugins', plugin, 'registry', 'config_path']
    if (path.some((step, at) => step !== target[at])) continue
    let at = value
    for (const step of target.slice(path.length))
      at = typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[step] : undefined
    // Only of the section that counts does it matter that the path goes.
    if (typeof at === 'string' || plugin === pluginOf(nodeFormat))
      return { plugin, configPath: at as string | undefined }
  }
  return undefined
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
