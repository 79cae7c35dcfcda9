import { join, resolve } from 'node:path'
import type { FilePort } from '../../clients/file-port.ts'
import { caFileName } from '../../clients/ca-file.ts'
import { type K3dTarget, planK3d, refusedCreate, stripK3d } from '../../clients/k3d.ts'
import { type K3dClusterFile, k3dClusterFile } from '../../clients/k3d-config.ts'
import { filesBelow, localFiles } from '../../clients/files/local.ts'
import { hostingConfigMap, isOurHosting } from '../../clients/local-registry-hosting.ts'
import type { ClientAdapter, ClientOptions, ClientPlace, Machine } from '../../clients/types.ts'
import { dockerNetworkHome } from './docker-network-home.ts'
import { configMapFile } from '../../clients/files/remote.ts'
import { pullByCrictl, pullTimeoutMs } from './pull-by-crictl.ts'
import { versionOf } from './version-of.ts'

/** k3d: clusters to be made, and what the tools of one that runs look up. https://k3d.io */
export const k3dAdapter: ClientAdapter = {
  client: 'k3d',
  summary: 'k3d: a registries.yaml, and the command that makes a cluster with it',

  async find(machine) {
    return versionOf(machine, 'k3d', 'version')
  },

  async places(machine, options) {
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
): ClientPlace {
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
    home: dockerNetworkHome(machine, 'k3d nodes', network ?? `k3d-${name}`),
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
