import { dirname, join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { isScalar } from 'yaml'
import { quoteShellWord } from '../../lib/process.ts'
import { getDockerNetworkLocation, getProgramVersion } from '../address.ts'
import { pullByCrictl, pullTimeoutMs } from '../containerd/cri.ts'
import {
  addYamlKey,
  readYamlText,
  removeFromYaml,
  getYamlNode,
  createYamlError,
  type YamlText,
  getYamlValue,
} from '../edit/yaml.ts'
import { caFileName, recognizeFile } from '../files/kinds.ts'
import { createRootedFiles, localFiles } from '../files/local.ts'
import { createConfigMapFile, overlayFile, registryConfigMap } from '../files/remote.ts'
import { type CaLocation, k3sFolder, planRegistries, type RegistriesPlan, stripRegistries } from './k3s.ts'
import { isOwnHostingConfigMap, renderHostingConfigMap } from '../kind/nodes.ts'
import { inspectRegistriesYaml } from './registries-yaml.ts'
import type {
  ClientAdapter,
  ClientOptions,
  ConfigPlan,
  ConfigTarget,
  FileChange,
  FilePort,
  FilesSnapshot,
  Machine,
  MirrorForClient,
} from '../types.ts'

interface K3dTarget {
  readonly cluster: string
  /** Names the registries.yaml for new clusters, or the user's cluster file, which embeds one. */
  readonly path: string
  /**
   * Names the file of the mirror's CA. The nodes mount its folder and not the file: they would not start again without a mounted
   * file, and would keep the old content of a replaced one.
   */
  readonly caPath: string
  /** Holds the path of the hosting ConfigMap among the target's files; undefined when the cluster does not answer kubectl. */
  readonly hosting: string | undefined
}

const caFolderInNodes = `${k3sFolder}/mirror-ca`
/** Is k3d's name for a cluster without a given name. */
const defaultClusterName = 'k3s-default'
/** Holds the path of the hosting ConfigMap among the files of this machine, where no file has it. */
const hostingPath = `/kubernetes/${registryConfigMap.namespace}/${registryConfigMap.name}.yaml`
/** Holds the key of the embedded registries.yaml in a cluster file. */
const embeddedConfig = ['registries', 'config'] as const

/** Returns the CA's path on this machine, and its path in the nodes. */
function getCaLocation(path: string): CaLocation {
  return { path, name: `${caFolderInNodes}/${caFileName}` }
}

/** Implements ConfigTarget.strip. */
export function stripK3d(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { path, caPath }: Pick<K3dTarget, 'path' | 'caPath'>,
  files: FilesSnapshot,
): FileChange[] {
  const strip = isClusterFile(path, files) ? stripClusterFile : stripRegistries
  return strip(mirror, path, getCaLocation(caPath), files)
}

/** Reports whether this is a cluster file of k3d, which embeds the registries.yaml. */
function isClusterFile(path: string, files: FilesSnapshot): boolean {
  const text = files.getText(path)
  return text !== undefined && parseK3dClusterFile(path, text) !== undefined
}

/** Plans a registries.yaml, and prints the command that creates a cluster with it. https://k3d.io/stable/usage/registries/ */
export function planK3d(
  mirror: MirrorForClient,
  { cluster, path, caPath, hosting }: K3dTarget,
  files: FilesSnapshot,
): ConfigPlan {
  const isCluster = isClusterFile(path, files)
  const plan = isCluster ? planClusterFile : planRegistries
  const { changes, notes } = plan(mirror, path, getCaLocation(caPath), files)
  const strictFlags = mirror.fallback ? [] : [`--k3s-arg '--disable-default-registry-endpoint@server:*;agent:*'`]
  const volume = `${dirname(caPath)}:${caFolderInNodes}@server:*;agent:*`
  const mount = mirror.ca === undefined ? [] : ['--volume', quoteShellWord(volume)]
  const flag = isCluster ? '--config' : '--registry-config'
  const create = ['k3d cluster create', quoteShellWord(cluster), flag, quoteShellWord(path), ...mount, ...strictFlags]
  const { registry } = mirror
  const configMap = registry === undefined ? undefined : renderHostingConfigMap(registry)
  const current = hosting === undefined ? undefined : files.getText(hosting)
  const isForeign = current !== undefined && !isOwnHostingConfigMap(current)
  if (isForeign) notes.push(`The cluster ${cluster} already announces another registry to Tilt and skaffold; it stays.`)
  return {
    changes: [
      ...changes,
      ...(hosting === undefined || configMap === undefined || isForeign ? [] : files.change(hosting, configMap)),
    ],
    notes: [...notes, 'Only new clusters use it; a running cluster does not change.'],
    todo:
      hosting === undefined && configMap !== undefined
        ? [
            `once the cluster runs, mirror configure k3d --cluster ${cluster} announces the registry to Tilt and skaffold`,
          ]
        : [],
    output: `${create.join(' ')}\n`,
  }
}

/** Renders the script for `mirror configure k3d | sh` after a failure: the shell exits with mirror's exit code, not with success. */
function renderFailedCommand(reason: string, exit: number): string {
  return `exit ${exit} # mirror configure k3d failed: ${reason}\n`
}

/** Configures k3d: new clusters, and the hosting ConfigMap of a running one. https://k3d.io */
export const k3dAdapter: ClientAdapter = {
  client: 'k3d',
  summary: 'k3d: a registries.yaml, and the command that creates a cluster with it',

  async find(machine) {
    return getProgramVersion(machine, 'k3d', 'version')
  },

  async findTargets(machine, options) {
    const isNamed = options.cluster !== undefined && !machine.detached
    const hasHosting = isNamed && (await answersKubectl(machine, options.cluster))
    return [createTarget(machine, { ...options, ...(await readClusterFile(machine, options.file)) }, hasHosting)]
  },

  renderFailure: ({ reason, exit }) => renderFailedCommand(reason, exit),

  restoreTarget: (machine, { cluster, file, name, network, hosting }) =>
    createTarget(machine, { cluster, file, name, network }, hosting === 'yes'),
}

/** Reads the name and network from the user's cluster file; empty for any other file. */
async function readClusterFile(
  { cwd, detached, root }: Machine,
  file: string | undefined,
): Promise<Partial<K3dClusterFile>> {
  if (file === undefined) return {}
  const path = resolve(cwd, file)
  const found = await (detached ? createRootedFiles(root) : localFiles).read(path)
  return (found && parseK3dClusterFile(path, Buffer.from(found.bytes).toString())) ?? {}
}

function createTarget(
  machine: Machine,
  { cluster, file, name: givenName, network }: Pick<ClientOptions, 'cluster' | 'file'> & Partial<K3dClusterFile>,
  hasHosting: boolean,
): ConfigTarget {
  const name = cluster ?? givenName ?? defaultClusterName
  const folder = getOwnFolder(machine, name)
  const path = file === undefined ? join(folder, 'registries.yaml') : resolve(machine.cwd, file)
  const caPath = join(folder, 'ca', caFileName)
  const target: K3dTarget = { cluster: name, path, caPath, hosting: hasHosting ? hostingPath : undefined }
  return {
    id: `cluster ${name}${file === undefined ? '' : `, file ${path}`}`,
    title: `the cluster ${name} (${path})`,
    details: {
      ...(cluster !== undefined && { cluster }),
      ...(file !== undefined && { file: path }),
      ...(givenName !== undefined && { name: givenName }),
      ...(network !== undefined && { network }),
      ...(hasHosting && { hosting: 'yes' }),
    },
    location: getDockerNetworkLocation(machine, 'k3d nodes', network ?? `k3d-${name}`),
    files: hasHosting ? withConfigMap(machine, name) : localFiles,
    ...(file === undefined && !hasHosting && { isOwn: true as const }),
    // Without the ConfigMap, the files are for new clusters.
    ...(hasHosting && { isDeleted: () => isClusterDeleted(machine, name) }),
    inputs: { files: [path, caPath, ...(hasHosting ? [hostingPath] : [])], trees: [] },
    plan: (mirror, files) => planK3d(mirror, target, files),
    inspect: (cache, files) => inspectRegistriesYaml(path, files.getText(path), cache),
    strip: (mirror, files) => [
      ...stripK3d(mirror, target, files),
      ...(hasHosting && isOwnHostingConfigMap(files.getText(hostingPath) ?? '')
        ? files.change(hostingPath, undefined)
        : []),
    ],
    pull(image) {
      const crictlCommand = ['exec', `k3d-${name}-server-0`, 'crictl']
      const runCrictl = (args: readonly string[]) =>
        machine.runCommand('docker', [...crictlCommand, ...args], { timeoutMs: pullTimeoutMs })
      return pullByCrictl(runCrictl, image, 'docker, which runs the nodes, is not installed.')
    },
    reasons: [
      {
        why: 'the cluster was created without it',
        fix: `k3d cluster delete ${name}; mirror configure k3d --cluster ${name} | sh`,
      },
      {
        why: 'the mirror does not serve the network of the cluster',
        fix: `mirror up --network k3d-${name}`,
      },
    ],
  }
}

function getOwnFolder({ detached, home, stateDir }: Machine, cluster: string): string {
  return join(detached ? join(home, '.local', 'state', 'mirror') : stateDir, 'k3d', cluster)
}

function createKubectl({ runCommand }: Machine, cluster: string) {
  return (args: readonly string[], input?: string) =>
    runCommand('kubectl', ['--context', `k3d-${cluster}`, ...args], {
      timeoutMs: 15_000,
      ...(input !== undefined && { input }),
    })
}

async function answersKubectl(machine: Machine, cluster: string): Promise<boolean> {
  const result = await createKubectl(
    machine,
    cluster,
  )(['get', 'namespace', registryConfigMap.namespace, '--output', 'name'])
  return result?.exitCode === 0 && result.stdout.trim() !== ''
}

/** Creates a port of this machine's files, with the hosting ConfigMap of the cluster at `hostingPath`. */
function withConfigMap(machine: Machine, cluster: string): FilePort {
  const { name, namespace } = registryConfigMap
  return overlayFile(localFiles, hostingPath, createConfigMapFile(name, namespace, createKubectl(machine, cluster)))
}

/** Reports whether k3d answers and knows no cluster of this name. */
async function isClusterDeleted({ runCommand }: Machine, name: string): Promise<boolean> {
  const result = await runCommand('k3d', ['cluster', 'list', '--output', 'json'], { timeoutMs: 10_000 })
  if (result?.exitCode !== 0) return false
  const clusters = JSON.parse(result.stdout || '[]') as { name?: string }[] | null
  return !clusters?.some((one) => one.name === name)
}

/** Describes the properties of a cluster file of k3d (`kind: Simple`). https://k3d.io/stable/usage/configfile/ */
interface K3dClusterFile {
  readonly name: string | undefined
  /** Names the Docker network; undefined: k3d creates one for the cluster. */
  readonly network: string | undefined
}

/** Parses a cluster file; undefined for any other file. Throws MirrorError (usage) for broken YAML. */
export function parseK3dClusterFile(path: string, text: string): K3dClusterFile | undefined {
  if (recognizeFile(path, text)?.kind !== 'k3d cluster') return undefined
  const yaml = readYamlText(text, path)
  const [name, network] = [
    getYamlValue(yaml, ['metadata', 'name']) ?? getYamlValue(yaml, ['name']),
    getYamlValue(yaml, ['network']),
  ]
  return {
    name: typeof name === 'string' ? name : undefined,
    network: typeof network === 'string' && network !== '' ? network : undefined,
  }
}

/** Plans the embedded registries.yaml of a cluster file; see planRegistries. */
function planClusterFile(
  mirror: MirrorForClient,
  path: string,
  caLocation: CaLocation,
  files: FilesSnapshot,
): RegistriesPlan {
  const yaml = parseSimpleConfig(path, files.getText(path)!)
  const inner = getEmbeddedRegistries(yaml)
  const { changes, notes } = planRegistries(mirror, path, caLocation, withEmbeddedFile(files, path, inner))
  return { changes: embedChanges(yaml, inner, path, changes, files), notes }
}

/** Implements ConfigTarget.strip. */
function stripClusterFile(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  path: string,
  caLocation: CaLocation,
  files: FilesSnapshot,
): FileChange[] {
  const yaml = parseSimpleConfig(path, files.getText(path)!)
  const inner = getEmbeddedRegistries(yaml)
  return embedChanges(
    yaml,
    inner,
    path,
    stripRegistries(mirror, path, caLocation, withEmbeddedFile(files, path, inner)),
    files,
  )
}

function parseSimpleConfig(path: string, text: string): YamlText {
  const yaml = readYamlText(text, path)
  if (getYamlValue(yaml, ['kind']) !== 'Simple')
    throw createYamlError(yaml, ['kind'], 'this is not a cluster file of k3d with kind: Simple')
  return yaml
}

/** Returns the embedded registries.yaml; undefined when absent or empty. Throws MirrorError (usage) for another form. */
function getEmbeddedRegistries(yaml: YamlText): string | undefined {
  const config = getYamlValue(yaml, embeddedConfig) ?? undefined
  if (config === undefined) return undefined
  if (typeof config !== 'string')
    throw createYamlError(yaml, embeddedConfig, 'expected a string with a registries.yaml')
  if (config.trim() === '') return undefined
  // Refuse a single line, which k3d reads as the path of a file.
  if (!config.includes('\n'))
    throw createYamlError(yaml, embeddedConfig, `k3d reads the registries from another file, ${config}`, [
      `mirror configure k3d --file ${quoteShellWord(config)}`,
    ])
  return config
}

/** Returns the files with the embedded text in place of the whole cluster file. */
function withEmbeddedFile(files: FilesSnapshot, path: string, inner: string | undefined): FilesSnapshot {
  return files.with([{ path, before: undefined, after: inner }])
}

/** Converts the change of the embedded text into a change of the whole cluster file. */
function embedChanges(
  yaml: YamlText,
  inner: string | undefined,
  path: string,
  changes: readonly FileChange[],
  files: FilesSnapshot,
): FileChange[] {
  return changes.flatMap((change) => {
    if (change.path !== path) return [change]
    const { after } = change
    if (after === undefined)
      return files.change(path, inner === undefined ? yaml.text : removeFromYaml(yaml, embeddedConfig).text)
    const added = inner === undefined ? withoutEmptyConfig(yaml) : yaml
    return files.change(
      path,
      inner === undefined ? addYamlKey(added, embeddedConfig, after).text : replaceEmbeddedText(yaml, after),
    )
  })
}

/** Removes an empty `config:`, so that the key can be added. */
function withoutEmptyConfig(yaml: YamlText): YamlText {
  return getYamlNode(yaml, embeddedConfig) === undefined ? yaml : removeFromYaml(yaml, embeddedConfig)
}

/** Replaces the embedded text and keeps unchanged lines byte for byte. Throws MirrorError (usage) where that is not possible. */
function replaceEmbeddedText(yaml: YamlText, after: string): string {
  const node = getYamlNode(yaml, embeddedConfig)
  const refuse = () =>
    createYamlError(yaml, embeddedConfig, 'registries.config cannot be changed without rewriting more of the file', [
      'write it as a block: config: |',
    ])
  if (!isScalar(node) || !node.range) throw refuse()
  const [start, end] = node.range
  const old = yaml.text.slice(start, end)
  const replacement = old.startsWith('|')
    ? renderBlock(old, after)
    : old.startsWith('"')
      ? JSON.stringify(after)
      : undefined
  if (replacement === undefined) throw refuse()
  const text = yaml.text.slice(0, start) + replacement + yaml.text.slice(end)
  if (
    !isDeepStrictEqual(splitContent(readYamlText(text, yaml.path)), { ...splitContent(yaml), config: after.trimEnd() })
  )
    throw refuse()
  return text
}

/** Splits the content into the file without the embedded text, and that text without trailing line ends. */
function splitContent(yaml: YamlText): { readonly all: unknown; readonly config: string } {
  const all = getYamlValue(yaml) as { registries: object }
  return {
    all: { ...all, registries: { ...all.registries, config: '' } },
    config: String(getYamlValue(yaml, embeddedConfig)).trimEnd(),
  }
}

/** Renders a literal block with new content. Equal lines at its start and end stay as they were written. */
function renderBlock(old: string, after: string): string {
  const [header, ...lines] = old.split(/(?<=\n)/) as [string, ...string[]]
  const indent = /^ +(?=\S)/.exec(lines.find((line) => line.trim() !== '') ?? '')?.[0] ?? '  '
  const end = header.endsWith('\r\n') ? '\r\n' : '\n'
  const oldLines = lines.map((line) => line.replace(/\r?\n$/, '').slice(indent.length))
  const newLines = after.replace(/\n$/, '').split('\n')
  let top = 0
  while (top < newLines.length && newLines[top] === oldLines[top]) top += 1
  let bottom = 0
  while (
    bottom < newLines.length - top &&
    bottom < oldLines.length - top &&
    newLines.at(-1 - bottom) === oldLines.at(-1 - bottom)
  )
    bottom += 1
  const middle = newLines.slice(top, newLines.length - bottom).map((line) => (line === '' ? '' : indent + line) + end)
  const result = [...lines.slice(0, top), ...middle, ...lines.slice(lines.length - bottom)]
  // Keep the line end of the last line as it was.
  return (
    header + result.map((line, at) => (at < result.length - 1 && !line.endsWith('\n') ? line + end : line)).join('')
  )
}
