import { join, resolve } from 'node:path'
import type { ClientHome } from '../../clients/address.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { planKind, stripKind } from '../../clients/kind.ts'
import { localFiles } from '../../clients/files/local.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ClientPlace, Machine } from '../../clients/types.ts'
import type { FoundNode, KindNodes } from '../../clients/kind/nodes.ts'
import { pullInNode } from './pull-in-node.ts'

/** Clusters to be made: the folders that they mount, and the user's cluster file where there is one. */
export function kindFilesPlace(
  machine: Machine,
  nodes: KindNodes,
  file: string | undefined,
  home: ClientHome,
): ClientPlace {
  const folder = hostsFolder(machine)
  const target = { folder, file, join: (...parts: string[]) => join(...parts) }
  return {
    id: file === undefined ? 'new clusters' : `file ${file}`,
    title: file === undefined ? 'new clusters (a cluster file on stdout)' : `the cluster file ${file}`,
    details: file === undefined ? {} : { file },
    home,
    files: machine.detached ? localFiles : keepingMounted(nodes),
    ...(file === undefined && { ours: true as const }),
    readAtEachPull: true,
    wants: { files: file === undefined ? [] : [file], trees: [folder] },
    plan(mirror, files) {
      if (/[:\n]/.test(folder.replace(/^[A-Za-z]:(?=\\)/, '')))
        throw new MirrorError(`kind cannot mount ${folder}: a colon ends a path there.`, {
          exit: exitCode.usage,
          hints: [
            'MIRROR_HOME=… mirror configure kind   (a folder without a colon)',
            'mirror configure kind --cluster NAME',
          ],
        })
      return planKind(mirror, target, files)
    },
    strip: (mirror, files) => stripKind(mirror, target, files),
    async pull(image) {
      const mounting = (await nodes.list()).filter((node) => node.isRunning && mounts(node, folder))
      if (mounting.length === 0) return { failed: `No running node of kind mounts ${folder}.` }
      const failures = []
      for (const { name } of mounting) failures.push(await pullInNode(nodes, name, image))
      return { failed: failures.filter((failure) => failure !== undefined).join('\n') || undefined }
    },
    reasons: [
      {
        why: 'no cluster was made with this configuration',
        fix: `mirror configure kind | kind create cluster --config -`,
      },
      { why: 'the cluster was made without it', fix: 'mirror configure kind --cluster NAME' },
      {
        why: 'the mirror has moved to another address',
        fix: 'mirror configure kind > /dev/null',
        isUnconfigured: true,
      },
      { why: 'the mirror does not serve the network of the nodes', fix: 'mirror status' },
      {
        why: 'the nodes ask their proxy for the mirror: kind exempts only mirror.svc and the addresses of their network',
        fix: 'mirror up   (gives the nodes such an address)',
      },
    ],
  }
}

/** The path of the user's file, which may be given relative to where they are. */
export function clusterFile({ cwd }: Machine, file: string | undefined): string | undefined {
  return file === undefined ? undefined : resolve(cwd, file)
}

/** Where the folders lie that nodes mount: below our state, which with `--root` is below that. */
function hostsFolder({ detached, home, stateDir }: Machine): string {
  return join(detached ? join(home, '.local', 'state', 'mirror') : stateDir, 'kind', 'certs.d')
}

/**
 * Files of this machine, except that a folder which some cluster mounts stays, empty: without it the cluster would not start
 * again after a reboot.
 */
function keepingMounted(nodes: KindNodes): FilePort {
  return {
    ...localFiles,
    async removeFolder(path) {
      if (!(await isMounted(path))) await localFiles.removeFolder(path)
    },
  }

  async function isMounted(path: string): Promise<boolean> {
    try {
      return (await nodes.list()).some((node) => mounts(node, path))
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error
      // Nobody can say: an empty folder that stays harms less than one that is missed.
      return true
    }
  }
}

function mounts({ mounts }: FoundNode, path: string): boolean {
  return mounts.some(({ source }) => source === path || source.startsWith(join(path, '/')))
}
