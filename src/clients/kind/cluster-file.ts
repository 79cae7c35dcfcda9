import { posix } from 'node:path'
import { stringify } from 'yaml'
import { quoteShellWord } from '../../lib/process.ts'
import { getRegistryHeading, getImagePlugin, readRegistrySection } from '../containerd/config-toml.ts'
import {
  planNodeHostsFolders,
  getNodeHostsFolders,
  defaultConfigPath,
  planHostsRemoval,
} from '../containerd/hosts-toml.ts'
import {
  addYamlItem,
  readYamlText,
  removeFromYaml,
  type YamlPath,
  createYamlError,
  type YamlText,
  getYamlValue,
} from '../edit/yaml.ts'
import { assertFileKind, mirrorHeader } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'

interface KindTarget {
  /** Holds the parent, on this machine, of the folders that the nodes mount. */
  readonly folder: string
  /** Names the user's cluster file; undefined: the plan prints one. */
  readonly file: string | undefined
  readonly join: (...parts: string[]) => string
}

/** Plans new clusters: their cluster file, and the folders that it mounts into the nodes. */
export function planKind(
  mirror: MirrorForClient,
  { folder, file, join }: KindTarget,
  files: FilesSnapshot,
): ConfigPlan {
  // Assume that containerd lacks `referrers`, because the version in the nodes is unknown until they run.
  const folders = getNodeHostsFolders(mirror, { referrers: false })
  const mounts = folders.map(({ name }) => ({ hostPath: join(folder, name), name }))
  const changes = planNodeHostsFolders(folders, folder, files, join)
  const notes = [`The nodes mount ${mounts.map(({ hostPath }) => hostPath).join(' and ')}.`]
  const todo = [
    'once the cluster runs, mirror configure kind --cluster NAME announces the registry to Tilt and skaffold',
  ]
  if (file === undefined) return { changes, notes, todo, output: renderClusterFile(mounts) }
  const before = files.getText(file)
  const merged =
    before === undefined ? { text: renderClusterFile(mounts), notes: [] } : mergeClusterFile(before, file, mounts)
  const create = `kind create cluster --config ${quoteShellWord(file)}   (for a running cluster: mirror configure kind --cluster NAME)`
  return {
    changes: [...changes, ...files.change(file, merged.text)],
    notes: [...notes, ...merged.notes],
    todo: [create, ...todo],
  }
}

/** Implements ConfigTarget.strip. */
export function stripKind(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { folder, file }: KindTarget,
  files: FilesSnapshot,
): FileChange[] {
  const text = file === undefined ? undefined : files.getText(file)
  return [
    ...planHostsRemoval(folder, mirror, files),
    ...(file === undefined || text === undefined ? [] : files.change(file, stripClusterFile(text, file, folder))),
  ]
}

/** Pairs a folder of this machine with the name of its mount point below the `config_path` of the nodes. */
interface KindMount {
  readonly hostPath: string
  readonly name: string
}

/** Holds the `version` of config.toml in kind's nodes, independent of their containerd. */
const nodeFormat = 2

/**
 * Renders the patch that sets `config_path` for every containerd that kind has shipped: config.toml in the nodes has version 2,
 * and kind ignores a patch with another version. The comment distinguishes the patch from the user's, which many tutorials
 * contain without it.
 * https://kind.sigs.k8s.io/docs/user/configuration/#containerdconfigpatches
 */
function renderPatch(configPath: string): string {
  return `# added by mirror\n${getRegistryHeading(getImagePlugin(nodeFormat))}\n  config_path = ${JSON.stringify(configPath)}`
}

/** Matches a patch of `renderPatch` with any folder. */
const ownPatch =
  /^# added by mirror\n\[plugins\."io\.containerd\.grpc\.v1\.cri"\.registry\]\n {2}config_path = "[^"\n]*"\n?$/

const header = { kind: 'Cluster', apiVersion: 'kind.x-k8s.io/v1alpha4' }

/** Renders a cluster file with one node. */
function renderClusterFile(mounts: readonly KindMount[]): string {
  const extraMounts = mounts.map((mount) => toMountEntry(mount, defaultConfigPath))
  const cluster = {
    ...header,
    containerdConfigPatches: [renderPatch(defaultConfigPath)],
    nodes: [{ role: 'control-plane', extraMounts }],
  }
  return mirrorHeader + stringify(cluster, { lineWidth: 0, indentSeq: false })
}

/** Holds the user's cluster file with mirror's settings, and notes about the user's patches. */
interface MergedClusterFile {
  readonly text: string
  readonly notes: readonly string[]
}

/**
 * Renders the document to print when the cluster file could not be made. kind rejects it and quotes its apiVersion, which holds
 * the reason: `unknown apiVersion: none, because mirror configure kind failed…`.
 */
export function renderFailedClusterFile(reason: string): string {
  const apiVersion = `none, because mirror configure kind failed: ${reason}`
  return `# No cluster file.\n${stringify({ kind: header.kind, apiVersion }, { lineWidth: 0 })}`
}

/**
 * Adds the patch, and the mounts to each node, unless present. Throws MirrorError (usage) with line and column for a file whose
 * settings conflict with mirror's.
 */
function mergeClusterFile(text: string, path: string, mounts: readonly KindMount[]): MergedClusterFile {
  assertFileKind(path, text, { kinds: ['kind cluster'], expected: 'a cluster file of kind' })
  let yaml = readYamlText(text, path)
  if (getYamlValue(yaml) === null)
    return { text: `${text}${/[^\n]$/.test(text) ? '\n' : ''}${renderClusterFile(mounts)}`, notes: [] }
  for (const [key, value] of Object.entries(header)) {
    if (getYamlValue(yaml, [key]) !== value)
      throw createYamlError(yaml, [key], `this is not a cluster file with ${key}: ${value}`)
  }
  const { configPath: effective, intendedPath, notes } = evaluatePatches(yaml)
  const configPath = effective ?? intendedPath ?? defaultConfigPath
  if (effective === undefined) yaml = addYamlItem(yaml, ['containerdConfigPatches'], renderPatch(configPath))
  const entries = mounts.map((mount) => toMountEntry(mount, configPath))
  const nodes = getYamlValue(yaml, ['nodes']) ?? []
  if (!Array.isArray(nodes)) throw createYamlError(yaml, ['nodes'], 'expected a list of nodes')
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

/** Removes the mounts of folders below `folder`, and mirror's own patch. */
function stripClusterFile(text: string, path: string, folder: string): string {
  let yaml = readYamlText(text, path)
  const nodes = getYamlValue(yaml, ['nodes'])
  for (const at of Array.isArray(nodes) ? nodes.keys() : []) {
    for (let entry = getList(yaml, ['nodes', at, 'extraMounts']).length - 1; entry >= 0; entry -= 1) {
      const hostPath = getYamlValue(yaml, ['nodes', at, 'extraMounts', entry, 'hostPath'])
      if (typeof hostPath === 'string' && isBelow(folder, hostPath))
        yaml = removeFromYaml(yaml, ['nodes', at, 'extraMounts', entry])
    }
  }
  const patches = getList(yaml, ['containerdConfigPatches'])
  const index = patches.findIndex((patch) => typeof patch === 'string' && ownPatch.test(patch))
  return (index === -1 ? yaml : removeFromYaml(yaml, ['containerdConfigPatches', index])).text
}

function isBelow(folder: string, path: string): boolean {
  return path.startsWith(folder) && /^[\\/]/.test(path.slice(folder.length))
}

function toMountEntry({ hostPath, name }: KindMount, configPath: string): KindMountEntry {
  return { hostPath, containerPath: posix.join(configPath, name), readOnly: true }
}

interface KindMountEntry {
  readonly hostPath: string
  readonly containerPath: string
  readonly readOnly: true
}

interface PatchedSection {
  /** Holds the folder that every containerd reads; undefined when some read none. */
  readonly configPath: string | undefined
  /** Holds a folder that is set in a section that some versions of containerd do not read. */
  readonly intendedPath: string | undefined
  readonly notes: readonly string[]
}

/** Evaluates the combined effect of the user's patches. Throws MirrorError (usage) for patches that conflict with the mirror. */
function evaluatePatches(yaml: YamlText): PatchedSection {
  let configPath: string | undefined
  let intendedPath: string | undefined
  const notes: string[] = []
  for (const [at, text] of getList(yaml, ['containerdConfigPatches']).entries()) {
    const patchPath = ['containerdConfigPatches', at]
    if (typeof text !== 'string')
      throw createYamlError(yaml, patchPath, 'expected a string, which kind merges into config.toml')
    const where = `${yaml.path}, ${patchPath.join('.')}`
    const section = readRegistrySection(where, text, { version: nodeFormat })
    if (section.oldKey !== undefined) throw createOldKeyError(yaml, patchPath, section.oldKey)
    if (section.version === nodeFormat && section.setsPath) configPath = section.configPaths[0]
    if (section.version !== nodeFormat && (section.configPaths.length > 0 || section.ineffective.length > 0)) {
      intendedPath ??= section.configPaths[0] ?? section.ineffective.flatMap(({ configPaths }) => configPaths)[0]
      notes.push(
        `${where} may have no effect: config.toml in kind's nodes has version = ${nodeFormat}, and kind ignores patches ` +
          `with version = ${section.version}.`,
      )
    } else
      for (const { heading, configPaths, others } of section.ineffective) {
        if (configPaths.length === 0) continue
        if (others.length > 0)
          throw createYamlError(
            yaml,
            patchPath,
            `${others.join(' and ')} in ${heading} would be lost: containerd ignores that section once ${getRegistryHeading(getImagePlugin(nodeFormat))} exists, which containerd 1.x needs`,
            [`move it to ${getRegistryHeading(getImagePlugin(nodeFormat))}, which every version of containerd reads`],
          )
        intendedPath ??= configPaths[0]
        notes.push(
          `Some versions of containerd ignore ${heading} in ${where}: the mirror's patch sets the same in ` +
            `${getRegistryHeading(getImagePlugin(nodeFormat))}.`,
        )
      }
  }
  // Evaluate JSON patches last, because kind applies them last.
  for (const [at, text] of getList(yaml, ['containerdConfigPatchesJSON6902']).entries()) {
    const patchPath = ['containerdConfigPatchesJSON6902', at]
    const key = typeof text === 'string' ? /registry\/(?:mirrors|configs)/.exec(text)?.[0] : undefined
    if (key !== undefined) throw createOldKeyError(yaml, patchPath, key.replace('/', '.'))
    for (const { path, value } of typeof text === 'string' ? parseJsonPatch(text) : []) {
      const patched = getPatchedPath(path, value)
      if (patched === undefined) continue
      if (patched.configPath === undefined)
        throw createYamlError(
          yaml,
          patchPath,
          `this patch removes the setting that makes containerd use the mirror: config_path in ${getRegistryHeading(patched.plugin)}`,
        )
      if (patched.plugin === getImagePlugin(nodeFormat)) configPath = patched.configPath.split(':').find(Boolean)
      else intendedPath ??= patched.configPath.split(':').find(Boolean)
    }
  }
  return { configPath, intendedPath, notes }
}

interface JsonPatchStep {
  readonly path: readonly string[]
  /** Is undefined when the step removes the value. */
  readonly value: unknown
}

/** Returns the steps of a JSON patch that set or remove a value; none for an invalid patch, which kind itself reports. */
function parseJsonPatch(text: string): JsonPatchStep[] {
  return parseJsonArray(text).flatMap((step) => {
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

function parseJsonArray(text: string): unknown[] {
  try {
    const steps: unknown = JSON.parse(text)
    return Array.isArray(steps) ? steps : []
  } catch (error) {
    if (error instanceof SyntaxError) return []
    throw error
  }
}

/** Returns the effect of a step on `config_path`; undefined when it has none. */
function getPatchedPath(
  path: readonly string[],
  value: unknown,
): { readonly plugin: string; readonly configPath: string | undefined } | undefined {
  for (const plugin of [1, 2, 3].map((version) => getImagePlugin(version))) {
    const target = ['plugins', plugin, 'registry', 'config_path']
    if (path.some((step, at) => step !== target[at])) continue
    let at = value
    for (const step of target.slice(path.length))
      at = typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[step] : undefined
    // Report a removed path only for the section that nodes read.
    if (typeof at === 'string' || plugin === getImagePlugin(nodeFormat))
      return { plugin, configPath: at as string | undefined }
  }
  return undefined
}

function createOldKeyError(yaml: YamlText, path: YamlPath, key: string) {
  return createYamlError(
    yaml,
    path,
    `this patch sets ${key}, and containerd rejects all pulls when config_path is set as well`,
    [
      `remove the patch from ${yaml.path}: the mirror serves every registry, and localhost:5001 for your own images`,
      'to mirror your own registries, add them to upstreams in mirror.yaml',
    ],
  )
}

function isMounted(yaml: YamlText, list: YamlPath, mount: KindMountEntry, configPath: string): boolean {
  for (const [at, entry] of getList(yaml, list).entries()) {
    const { hostPath, containerPath } = (entry ?? {}) as Record<string, unknown>
    if (typeof containerPath !== 'string') continue
    const mountPoint = posix.resolve('/', containerPath)
    if (mountPoint === mount.containerPath && hostPath === mount.hostPath) return true
    const what = `another folder is mounted at ${mountPoint}`
    if (mountPoint === mount.containerPath)
      throw createYamlError(yaml, [...list, at], `${what}, the mount point of the mirror's folder`)
    if (`${configPath}/`.startsWith(`${mountPoint}/`))
      throw createYamlError(yaml, [...list, at], `${what}, the parent of the mirror's mount points`, [
        'mirror configure kind --cluster NAME   (writes the folders once the cluster runs)',
      ])
  }
  return false
}

function getList(yaml: YamlText, path: YamlPath): unknown[] {
  const list = getYamlValue(yaml, path) ?? []
  if (!Array.isArray(list)) throw createYamlError(yaml, path, 'expected a list')
  return list
}
