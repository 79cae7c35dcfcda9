import { dirname, join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { isScalar } from 'yaml'
import { shellWord } from '../lib/process.ts'
import { dockerNetworkHome, versionOf } from './address.ts'
import { pullByCrictl, pullTimeoutMs } from './containerd/cri.ts'
import {
  addYamlKey,
  readYamlText,
  removeFromYaml,
  yamlNode,
  yamlRefusal,
  type YamlText,
  yamlValue,
} from './edit/yaml.ts'
import { caFileName, recognizeFile } from './files/kinds.ts'
import { filesBelow, localFiles } from './files/local.ts'
import { configMapFile, hostingConfigMap } from './files/remote.ts'
import { type CaLocation, k3sFolder, planRegistries, type RegistriesPlan, stripRegistries } from './k3s.ts'
import { isOurHosting, renderHosting } from './kind/nodes.ts'
import type {
  ClientAdapter,
  ClientOptions,
  ConfigPlan,
  ConfigTarget,
  FileChange,
  FilePort,
  FilesNow,
  Machine,
  MirrorForClient,
} from './types.ts'

interface K3dTarget {
  readonly cluster: string
  /** The registries.yaml that new clusters are made with, or the user's cluster file that has one in it. */
  readonly path: string
  /**
   * Where the mirror's CA is put. The nodes mount its folder: a file that was taken away would keep them from starting again,
   * and one that was replaced would stay the old one there.
   */
  readonly caPath: string
  /** The ConfigMap of the cluster, if it runs and answers; undefined: there is none to be told. */
  readonly hosting: string | undefined
}

const caFolderInNodes = `${k3sFolder}/mirror-ca`

/** The CA as the nodes of k3d have it. */
function k3dCa(path: string): CaLocation {
  return { path, name: `${caFolderInNodes}/${caFileName}` }
}

/** See ConfigTarget.strip. */
export function stripK3d(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { path, caPath }: Pick<K3dTarget, 'path' | 'caPath'>,
  files: FilesNow,
): FileChange[] {
  const strip = isClusterFile(path, files) ? stripClusterFile : stripRegistries
  return strip(mirror, path, k3dCa(caPath), files)
}

/** Whether the file is that of a whole cluster, which has the registries in it. */
function isClusterFile(path: string, files: FilesNow): boolean {
  const text = files.text(path)
  return text !== undefined && k3dClusterFile(path, text) !== undefined
}

/** k3d: a registries.yaml, and the command that makes a cluster with it. https://k3d.io/stable/usage/registries/ */
export function planK3d(
  mirror: MirrorForClient,
  { cluster, path, caPath, hosting }: K3dTarget,
  files: FilesNow,
): ConfigPlan {
  const isCluster = isClusterFile(path, files)
  const plan = isCluster ? planClusterFile : planRegistries
  const { changes, notes } = plan(mirror, path, k3dCa(caPath), files)
  const strict = mirror.fallback ? [] : [`--k3s-arg '--disable-default-registry-endpoint@server:*;agent:*'`]
  const volume = `${dirname(caPath)}:${caFolderInNodes}@server:*;agent:*`
  const mount = mirror.ca === undefined ? [] : ['--volume', shellWord(volume)]
  const flag = isCluster ? '--config' : '--registry-config'
  const create = ['k3d cluster create', shellWord(cluster), flag, shellWord(path), ...mount, ...strict]
  const { registry } = mirror
  const told = registry === undefined ? undefined : renderHosting(registry)
  const there = hosting === undefined ? undefined : files.text(hosting)
  const isOthers = there !== undefined && !isOurHosting(there)
  if (isOthers) notes.push(`The cluster ${cluster} names a registry of its own to Tilt and skaffold, and keeps it.`)
  return {
    changes: [
      ...changes,
      ...(hosting === undefined || told === undefined || isOthers ? [] : files.change(hosting, told)),
    ],
    notes: [...notes, 'Clusters take it when they are made; one that runs goes on without.'],
    todo:
      hosting === undefined && told !== undefined
        ? [`once it runs, mirror configure k3d --cluster ${cluster} tells Tilt and skaffold about the registry`]
        : [],
    output: `${create.join(' ')}\n`,
  }
}

/** What `mirror configure k3d | sh` runs when there is no command to make a cluster: it ends with our exit code, not with success. */
function refusedCreate(reason: string, exit: number): string {
  return `exit ${exit} # mirror configure k3d failed: ${reason}\n`
}

/** k3d: clusters to be made, and what the tools of one that runs look up. https://k3d.io */
export const k3dAdapter: ClientAdapter = {
  client: 'k3d',
  summary: 'k3d: a registries.yaml, and the command that makes a cluster with it',

  async find(machine) {
    return versionOf(machine, 'k3d', 'version')
  },

  async targets(machine, options) {
    const isNamed = options.cluster !== undefined && !machine.detached
    const hasHosting = isNamed && (await answersKubectl(machine, options.cluster))
    return [place(machine, { ...options, ...(await fromFile(machine, options.file)) }, hasHosting)]
  },

  refusal: ({ reason, exit }) => refusedCreate(reason, exit),

  recall: (machine, { cluster, file, name, network, hosting }) =>
    place(machine, { cluster, file, name, network }, hosting === 'yes'),
}

/** What k3d calls a cluster that was given no name. */
const usualName = 'k3s-default'
/** Among the files of this machine, where none is. */
const hostingPath = `/kubernetes/${hostingConfigMap.namespace}/${hostingConfigMap.name}.yaml`

/** What the user's cluster file says, where that is what was given. */
async function fromFile({ cwd, detached, root }: Machine, file: string | undefined): Promise<Partial<K3dClusterFile>> {
  if (file === undefined) return {}
  const path = resolve(cwd, file)
  const found = await (detached ? filesBelow(root) : localFiles).read(path)
  return (found && k3dClusterFile(path, Buffer.from(found.bytes).toString())) ?? {}
}

function place(
  machine: Machine,
  { cluster, file, name: named, network }: Pick<ClientOptions, 'cluster' | 'file'> & Partial<K3dClusterFile>,
  hasHosting: boolean,
): ConfigTarget {
  const name = cluster ?? named ?? usualName
  const folder = ownFolder(machine, name)
  const path = file === undefined ? join(folder, 'registries.yaml') : resolve(machine.cwd, file)
  const caPath = join(folder, 'ca', caFileName)
  const target: K3dTarget = { cluster: name, path, caPath, hosting: hasHosting ? hostingPath : undefined }
  return {
    id: `cluster ${name}${file === undefined ? '' : `, file ${path}`}`,
    title: `the cluster ${name} (${path})`,
    details: {
      ...(cluster !== undefined && { cluster }),
      ...(file !== undefined && { file: path }),
      ...(named !== undefined && { name: named }),
      ...(network !== undefined && { network }),
      ...(hasHosting && { hosting: 'yes' }),
    },
    location: dockerNetworkHome(machine, 'k3d nodes', network ?? `k3d-${name}`),
    files: hasHosting ? withConfigMap(machine, name) : localFiles,
    ...(file === undefined && !hasHosting && { ours: true as const }),
    wants: { files: [path, caPath, ...(hasHosting ? [hostingPath] : [])], trees: [] },
    plan: (mirror, files) => planK3d(mirror, target, files),
    strip: (mirror, files) => [
      ...stripK3d(mirror, target, files),
      ...(hasHosting && isOurHosting(files.text(hostingPath) ?? '') ? files.change(hostingPath, undefined) : []),
    ],
    pull(image) {
      const inNode = ['exec', `k3d-${name}-server-0`, 'crictl']
      const crictl = (args: readonly string[]) =>
        machine.runCommand('docker', [...inNode, ...args], { timeoutMs: pullTimeoutMs })
      return pullByCrictl(crictl, image, 'There is no docker here, by which the nodes are reached.')
    },
    reasons: [
      {
        why: 'the cluster was made without it',
        fix: `k3d cluster delete ${name}; mirror configure k3d --cluster ${name} | sh`,
      },
      {
        why: 'the mirror does not serve the network of the cluster',
        fix: `mirror up --network k3d-${name}`,
      },
    ],
  }
}

function ownFolder({ detached, home, stateDir }: Machine, cluster: string): string {
  return join(detached ? join(home, '.local', 'state', 'mirror') : stateDir, 'k3d', cluster)
}

function kubectl({ runCommand }: Machine, cluster: string) {
  return (args: readonly string[], input?: string) =>
    runCommand('kubectl', ['--context', `k3d-${cluster}`, ...args], {
      timeoutMs: 15_000,
      ...(input !== undefined && { input }),
    })
}

async function answersKubectl(machine: Machine, cluster: string): Promise<boolean> {
  const result = await kubectl(machine, cluster)(['get', 'namespace', hostingConfigMap.namespace, '--output', 'name'])
  return result?.exitCode === 0 && result.stdout.trim() !== ''
}

/** The files of this machine, and one that is an object of the cluster. */
function withConfigMap(machine: Machine, cluster: string): FilePort {
  const { name, namespace } = hostingConfigMap
  const object = configMapFile(name, namespace, kubectl(machine, cluster))
  const at = (path: string) => (path === hostingPath ? object : localFiles)
  return {
    read: (path) => at(path).read(path),
    list: (folder) => localFiles.list(folder),
    write: (path, content, attributes) => at(path).write(path, content, attributes),
    remove: (path) => at(path).remove(path),
    mayWrite: (path) => at(path).mayWrite(path),
    tidy: async (path) => at(path).tidy?.(path),
    removeFolder: (path) => localFiles.removeFolder(path),
  }
}

/** What a cluster file of k3d (`kind: Simple`) says about its cluster. https://k3d.io/stable/usage/configfile/ */
interface K3dClusterFile {
  readonly name: string | undefined
  /** The Docker network that it names, instead of one of its own. */
  readonly network: string | undefined
}

/** Where the text lies that is a registries.yaml of its own. */
const embeddedConfig = ['registries', 'config'] as const

/** Undefined for any other file. */
export function k3dClusterFile(path: string, text: string): K3dClusterFile | undefined {
  if (recognizeFile(path, text)?.kind !== 'k3d cluster') return undefined
  const yaml = readYamlText(text, path)
  const [name, network] = [
    yamlValue(yaml, ['metadata', 'name']) ?? yamlValue(yaml, ['name']),
    yamlValue(yaml, ['network']),
  ]
  return {
    name: typeof name === 'string' ? name : undefined,
    network: typeof network === 'string' && network !== '' ? network : undefined,
  }
}

/** The cluster file with the mirror in its registries; see planRegistries. */
function planClusterFile(mirror: MirrorForClient, path: string, caPlace: CaLocation, files: FilesNow): RegistriesPlan {
  const yaml = readSimple(path, files.text(path)!)
  const inner = registriesIn(yaml)
  const { changes, notes } = planRegistries(mirror, path, caPlace, innerFiles(files, path, inner))
  return { changes: around(yaml, inner, path, changes, files), notes }
}

/** See ConfigTarget.strip. */
function stripClusterFile(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  path: string,
  caPlace: CaLocation,
  files: FilesNow,
): FileChange[] {
  const yaml = readSimple(path, files.text(path)!)
  const inner = registriesIn(yaml)
  return around(yaml, inner, path, stripRegistries(mirror, path, caPlace, innerFiles(files, path, inner)), files)
}

function readSimple(path: string, text: string): YamlText {
  const yaml = readYamlText(text, path)
  if (yamlValue(yaml, ['kind']) !== 'Simple')
    throw yamlRefusal(yaml, ['kind'], 'this is no cluster file of k3d with kind: Simple')
  return yaml
}

/** The registries.yaml that is in the file; undefined where there is none. */
function registriesIn(yaml: YamlText): string | undefined {
  const config = yamlValue(yaml, embeddedConfig) ?? undefined
  if (config === undefined) return undefined
  if (typeof config !== 'string')
    throw yamlRefusal(yaml, embeddedConfig, 'there should be a text here, which is a registries.yaml')
  if (config.trim() === '') return undefined
  // k3d takes a text of one line for the path of a file.
  if (!config.includes('\n'))
    throw yamlRefusal(yaml, embeddedConfig, `k3d reads the registries from another file, ${config}`, [
      `mirror configure k3d --file ${shellWord(config)}`,
    ])
  return config
}

/** The files as they would be if the text inside were all of it. */
function innerFiles(files: FilesNow, path: string, inner: string | undefined): FilesNow {
  return files.with([{ path, before: undefined, after: inner }])
}

/** The changes with that of the text inside as one of the whole file. */
function around(
  yaml: YamlText,
  inner: string | undefined,
  path: string,
  changes: readonly FileChange[],
  files: FilesNow,
): FileChange[] {
  return changes.flatMap((change) => {
    if (change.path !== path) return [change]
    const { after } = change
    if (after === undefined)
      return files.change(path, inner === undefined ? yaml.text : removeFromYaml(yaml, embeddedConfig).text)
    const added = inner === undefined ? withoutNothing(yaml) : yaml
    return files.change(
      path,
      inner === undefined ? addYamlKey(added, embeddedConfig, after).text : withText(yaml, after),
    )
  })
}

/** Without an empty `config:`, which another takes the place of. */
function withoutNothing(yaml: YamlText): YamlText {
  return yamlNode(yaml, embeddedConfig) === undefined ? yaml : removeFromYaml(yaml, embeddedConfig)
}

/** The file with another text inside. Lines that stay, stay to the byte. */
function withText(yaml: YamlText, after: string): string {
  const node = yamlNode(yaml, embeddedConfig)
  const refuse = () =>
    yamlRefusal(
      yaml,
      embeddedConfig,
      'registries.config is written in a way that cannot be changed without rewriting more of it',
      ['write it as a block: config: |'],
    )
  if (!isScalar(node) || !node.range) throw refuse()
  const [start, end] = node.range
  const old = yaml.text.slice(start, end)
  const put = old.startsWith('|') ? block(old, after) : old.startsWith('"') ? JSON.stringify(after) : undefined
  if (put === undefined) throw refuse()
  const text = yaml.text.slice(0, start) + put + yaml.text.slice(end)
  if (!isDeepStrictEqual(contentOf(readYamlText(text, yaml.path)), { ...contentOf(yaml), config: after.trimEnd() }))
    throw refuse()
  return text
}

/** The file without the text inside, and that text; the block's header decides about line ends at its end. */
function contentOf(yaml: YamlText): { readonly all: unknown; readonly config: string } {
  const all = yamlValue(yaml) as { registries: object }
  return {
    all: { ...all, registries: { ...all.registries, config: '' } },
    config: String(yamlValue(yaml, embeddedConfig)).trimEnd(),
  }
}

/** A literal block with another content: the lines at its start and end that are the same are kept as they were written. */
function block(old: string, after: string): string {
  const [header, ...lines] = old.split(/(?<=\n)/) as [string, ...string[]]
  const indent = /^ +(?=\S)/.exec(lines.find((line) => line.trim() !== '') ?? '')?.[0] ?? '  '
  const end = header.endsWith('\r\n') ? '\r\n' : '\n'
  const written = lines.map((line) => line.replace(/\r?\n$/, '').slice(indent.length))
  const wanted = after.replace(/\n$/, '').split('\n')
  let top = 0
  while (top < wanted.length && wanted[top] === written[top]) top += 1
  let bottom = 0
  while (
    bottom < wanted.length - top &&
    bottom < written.length - top &&
    wanted.at(-1 - bottom) === written.at(-1 - bottom)
  )
    bottom += 1
  const middle = wanted.slice(top, wanted.length - bottom).map((line) => (line === '' ? '' : indent + line) + end)
  const kept = [...lines.slice(0, top), ...middle, ...lines.slice(lines.length - bottom)]
  // The last line has as much of a line end as it had.
  return header + kept.map((line, at) => (at < kept.length - 1 && !line.endsWith('\n') ? line + end : line)).join('')
}
