import { join, resolve } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { pullInNode } from '../containerd/cri.ts'
import { localFiles } from '../files/local.ts'
import type { ClientLocation, ConfigTarget, FilePort, Machine } from '../types.ts'
import { planKind, stripKind } from './cluster-file.ts'
import { inspectKindFiles } from './inspect.ts'
import type { FoundNode, KindNodes } from './nodes.ts'

/** Creates the target of new clusters: the folders that they mount, and the user's cluster file if given. */
export function createKindFilesTarget(
  machine: Machine,
  nodes: KindNodes,
  file: string | undefined,
  location: ClientLocation,
): ConfigTarget {
  const folder = getHostsFolder(machine)
  const target = { folder, file, join: (...parts: string[]) => join(...parts) }
  return {
    id: file === undefined ? 'new clusters' : `file ${file}`,
    title: file === undefined ? 'new clusters (a cluster file on stdout)' : `the cluster file ${file}`,
    details: file === undefined ? {} : { file },
    location,
    files: machine.detached ? localFiles : createMountAwareFiles(nodes),
    ...(file === undefined && { isOwn: true as const }),
    readAtEachPull: true,
    inputs: { files: file === undefined ? [] : [file], trees: [folder] },
    plan(mirror, files) {
      if (/[:\n]/.test(folder.replace(/^[A-Za-z]:(?=\\)/, '')))
        throw new MirrorError(`kind cannot mount ${folder}, because a colon ends a path in its mounts.`, {
          exit: exitCode.usage,
          hints: [
            'MIRROR_HOME=… mirror configure kind   (a folder without a colon)',
            'mirror configure kind --cluster NAME',
          ],
        })
      return planKind(mirror, target, files)
    },
    strip: (mirror, files) => stripKind(mirror, target, files),
    inspect: (_, files) => inspectKindFiles(target, files),
    async pull(image) {
      const mountingNodes = (await nodes.list()).filter((node) => node.isRunning && isMounting(node, folder))
      if (mountingNodes.length === 0) return { failed: `No running kind node mounts ${folder}.` }
      const failures = []
      for (const { name } of mountingNodes) failures.push(await pullInNode(nodes, name, image))
      return { failed: failures.filter((failure) => failure !== undefined).join('\n') || undefined }
    },
    reasons: [
      {
        why: 'no cluster was created with this configuration',
        fix: `mirror configure kind | kind create cluster --config -`,
      },
      { why: 'the cluster was created without it', fix: 'mirror configure kind --cluster NAME' },
      {
        why: 'the mirror has moved to another address',
        fix: 'mirror configure kind > /dev/null',
        isUnconfigured: true,
      },
      { why: 'the mirror does not serve the network of the nodes', fix: 'mirror status' },
      {
        why: 'the nodes use their proxy for the mirror: kind exempts only mirror.svc and the addresses of their network',
        fix: 'mirror up   (gives the nodes an exempt address)',
      },
    ],
  }
}

/** Resolves the user's path against the working directory. */
export function resolveClusterFile({ cwd }: Machine, file: string | undefined): string | undefined {
  return file === undefined ? undefined : resolve(cwd, file)
}

/** Returns the parent of the folders that nodes mount: in mirror's state folder, or below `--root`. */
function getHostsFolder({ detached, home, stateDir }: Machine): string {
  return join(detached ? join(home, '.local', 'state', 'mirror') : stateDir, 'kind', 'certs.d')
}

/**
 * Creates a port of this machine's files that keeps a mounted folder, empty, because a cluster does not start again after a
 * reboot without the folders that it mounts.
 */
function createMountAwareFiles(nodes: KindNodes): FilePort {
  return {
    ...localFiles,
    async removeFolder(path) {
      if (!(await isMounted(path))) await localFiles.removeFolder(path)
    },
  }

  async function isMounted(path: string): Promise<boolean> {
    try {
      return (await nodes.list()).some((node) => isMounting(node, path))
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error
      // Keep the folder when the nodes are unknown: a missing folder does more harm than an empty one.
      return true
    }
  }
}

function isMounting({ mounts }: FoundNode, path: string): boolean {
  return mounts.some(({ source }) => source === path || source.startsWith(join(path, '/')))
}
