import { posix } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { defaultConfigPath, namesMirror } from '../containerd/hosts-toml.ts'
import { inspectContainerdConfig } from '../containerd/inspect-config.ts'
import { inspectHostsFolders, toContainerdReader } from '../containerd/inspect-hosts.ts'
import { readRegistrySection } from '../containerd/config-toml.ts'
import { isObject } from '../../lib/json.ts'
import { getYamlValue, readYamlText } from '../edit/yaml.ts'
import type { FilesSnapshot, Finding } from '../types.ts'
import type { KindNode } from './nodes.ts'

const containerdConfig = '/etc/containerd/config.toml'

interface InspectedCluster {
  readonly cluster: string
  readonly nodes: readonly KindNode[]
}

/** Finds the known faults of a running cluster: those of containerd in each node, and missing files of the mirror. */
export function inspectKindNodes(
  cache: string | undefined,
  { nodes }: InspectedCluster,
  files: FilesSnapshot,
): readonly Finding[] {
  return nodes.flatMap((node) => inspectNode(cache, node, files))
}

function inspectNode(cache: string | undefined, node: KindNode, files: FilesSnapshot): readonly Finding[] {
  const { name, version } = node
  const toPath = (path: string) => posix.join('/', name, path)
  const text = files.getText(toPath(containerdConfig)) ?? ''
  const configPaths = readConfigPaths(text, version) ?? node.configPaths
  const [folder = defaultConfigPath] = configPaths
  const config = inspectContainerdConfig({
    main: { name: `${containerdConfig} in ${name}`, text },
    imports: [],
    dump: undefined,
    version,
    hosts: undefined,
    restart: `docker exec ${name} systemctl restart containerd`,
    isWritten: true,
  })
  const findings: Finding[] = [
    ...config.map((finding) => ({ ...finding, where: name })),
    ...inspectHostsFolders([toPath(folder)], toContainerdReader(version), files, cache).map((finding) => ({
      ...finding,
      where: name,
    })),
  ]
  const isBroken = findings.some(({ fault }) => fault === 'containerd.old-mirrors' || fault === 'containerd.syntax')
  if (configPaths.length === 0 && !isBroken)
    findings.push({
      fault: 'containerd.config-path',
      state: 'fail',
      where: name,
      saw: `containerd in ${name} has no config_path, so it reads no hosts.toml.`,
      mend: 'configure',
    })
  const hosts = toPath(posix.join(folder, '_default', 'hosts.toml'))
  const current = files.getText(hosts)
  if (current === undefined)
    findings.push({
      fault: 'kind.hosts',
      state: 'fail',
      where: name,
      saw: `${name} has no ${posix.join(folder, '_default', 'hosts.toml')}, so its pulls bypass the mirror.`,
      mend: 'configure',
    })
  else if (
    cache !== undefined &&
    !findings.some(({ fault }) => fault === 'hosts.syntax') &&
    !namesMirror(current, cache)
  )
    findings.push({
      fault: 'kind.hosts',
      state: 'fail',
      where: name,
      saw: `${posix.join(folder, '_default', 'hosts.toml')} in ${name} does not name ${cache}.`,
      mend: 'configure',
    })
  return findings
}

interface InspectedFiles {
  /** Holds the parent of the folders that nodes mount. */
  readonly folder: string
  /** Names the user's cluster file; undefined without one. */
  readonly file: string | undefined
}

/** Reads the folders of config_path from a config.toml; undefined where it sets none, or cannot be read. */
function readConfigPaths(text: string, version: string | undefined): readonly string[] | undefined {
  try {
    const section = readRegistrySection(containerdConfig, text, { containerd: version })
    return section.setsPath ? section.configPaths : undefined
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return undefined
  }
}

/** Finds the known faults of the configuration for new clusters. */
export function inspectKindFiles({ folder, file }: InspectedFiles, files: FilesSnapshot): readonly Finding[] {
  const findings: Finding[] = [...inspectHostsFolders([folder], toContainerdReader(undefined), files, undefined)]
  if (/:/.test(folder.replace(/^[A-Za-z]:(?=\\)/, '')))
    findings.push({
      fault: 'kind.mount',
      state: 'fail',
      saw: `kind cannot mount ${folder}, because a colon ends a path in its mounts.`,
      mend: { advice: 'Set MIRROR_HOME to a folder without a colon, then: mirror configure kind' },
    })
  if (file !== undefined) findings.push(...inspectClusterFile(file, files.getText(file) ?? ''))
  return findings
}

/** Finds patches that kind skips, and those that break config_path. */
export function inspectClusterFile(path: string, text: string): readonly Finding[] {
  const toFinding = (state: Finding['state'], saw: string, advice: string): Finding => ({
    fault: 'kind.patch',
    state,
    where: path,
    saw,
    mend: { advice },
  })
  try {
    const yaml = readYamlText(text, path)
    const jsonPatches = getYamlValue(yaml, ['containerdConfigPatchesJSON6902'])
    const oldPatch = (Array.isArray(jsonPatches) ? jsonPatches : []).findIndex(
      (patch) => typeof patch === 'string' && setsOldKey(patch),
    )
    if (oldPatch !== -1)
      return [
        toFinding(
          'fail',
          `${path}, containerdConfigPatchesJSON6902.${oldPatch} sets registry.mirrors, which breaks config_path: the nodes pull nothing.`,
          `Remove this patch from ${path}, then create the cluster again.`,
        ),
      ]
    const patches = getYamlValue(yaml, ['containerdConfigPatches'])
    const texts = (Array.isArray(patches) ? patches : []).filter((patch) => typeof patch === 'string')
    return texts.flatMap((patch, at) => {
      const where = `${path}, containerdConfigPatches.${at}`
      const section = readRegistrySection(where, patch, { version: 2 })
      if (section.oldKey !== undefined)
        return [
          toFinding(
            'fail',
            `${where} sets ${section.oldKey}, which breaks config_path: the nodes pull nothing.`,
            `Remove ${section.oldKey} from ${path}, then create the cluster again.`,
          ),
        ]
      if (section.version !== 2)
        return [
          toFinding(
            'fail',
            `${where} has version = ${section.version}, and kind skips it: config.toml in its nodes has version = 2.`,
            `Remove the line "version = ${section.version}" and use [plugins."io.containerd.grpc.v1.cri".registry].`,
          ),
        ]
      return section.ineffective
        .filter(({ configPaths }) => configPaths.length > 0)
        .map(({ heading }) =>
          toFinding(
            'warn',
            `${where} sets config_path in ${heading}, which containerd 1.x ignores.`,
            'Use [plugins."io.containerd.grpc.v1.cri".registry], which each containerd reads.',
          ),
        )
    })
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return [toFinding('fail', error.message, `Correct ${path}.`)]
  }
}

/** Reports whether a JSON patch (RFC 6902) sets registries in the deprecated form: below the registry, or with the registry as a whole. */
function setsOldKey(patch: string): boolean {
  let operations: unknown
  try {
    // YAML includes JSON, and kind reads both.
    operations = getYamlValue(readYamlText(patch, 'patch'))
  } catch (error) {
    if (error instanceof MirrorError) return false
    throw error
  }
  return (Array.isArray(operations) ? operations : []).some((operation) => {
    if (!isObject(operation) || operation['op'] === 'remove') return false
    const { path, value } = operation
    if (typeof path !== 'string') return false
    return (
      /\/registry\/mirrors(?:\/|$)/.test(path) || (path.endsWith('/registry') && isObject(value) && 'mirrors' in value)
    )
  })
}
