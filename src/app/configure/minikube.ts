import { join } from 'node:path'
import { localFiles } from '../../clients/files/local.ts'
import { planMinikube, stripMinikube } from '../../clients/minikube.ts'
import type { ClientAdapter, ClientPlace, Machine } from '../../clients/types.ts'
import { pullByCrictl, pullTimeoutMs } from './pull-by-crictl.ts'
import { versionOf } from './version-of.ts'

/** minikube, with whatever driver: each gives this machine the same name in its nodes. */
export const minikubeAdapter: ClientAdapter = {
  client: 'minikube',
  summary: 'minikube: files for nodes with containerd, flags for those with Docker',

  async find(machine) {
    const version = await versionOf(machine, 'minikube', 'version', '--short')
    return version && `minikube ${version}`
  },

  async places(machine, { cluster }) {
    return [place(machine, cluster)]
  },

  recall: (machine, { cluster }) => place(machine, cluster),
}

function place(machine: Machine, cluster: string | undefined): ClientPlace {
  const profile = cluster ?? 'minikube'
  const copied = join(minikubeHome(machine), 'files', 'etc')
  const folder = join(copied, 'containerd', 'certs.d')
  const dockerFolder = join(copied, 'docker', 'certs.d')
  const target = { folder, dockerFolder, profile, join: (...parts: string[]) => join(...parts) }
  return {
    id: 'user',
    title: `nodes of minikube (${folder})`,
    details: { scope: 'user', ...(cluster !== undefined && { cluster }) },
    home: { in: 'vm', what: 'a node of minikube', hostName: 'host.minikube.internal' },
    files: localFiles,
    wants: { files: [], trees: [folder, dockerFolder] },
    plan: (mirror, files) => planMinikube(mirror, target, files),
    strip: (mirror, files) => stripMinikube(mirror, target, files),
    ...(!machine.detached && {
      afterUndo: () => [`minikube delete --profile ${profile}   (until then its nodes keep what was copied into them)`],
    }),
    pull(image) {
      const inNode = ['ssh', '--profile', profile, '--', 'sudo', 'crictl']
      const crictl = (args: readonly string[]) =>
        machine.runCommand('minikube', [...inNode, ...args], { timeoutMs: pullTimeoutMs })
      return pullByCrictl(crictl, image, 'There is no minikube here.')
    },
    reasons: [
      { why: 'the node was started before', fix: `minikube start --profile ${profile}` },
      { why: 'the node runs Docker, which takes its flags only when it is made', fix: 'mirror configure minikube' },
      {
        why: 'the mirror does not listen where the node reaches this machine',
        fix: `mirror up --network ${profile}   (driver docker; for others: cache.listen in mirror.yaml)`,
      },
    ],
  }
}

/** https://minikube.sigs.k8s.io/docs/handbook/config/#environment-variables */
function minikubeHome({ env, home, detached }: Machine): string {
  const given = detached ? undefined : env['MINIKUBE_HOME']
  if (!given) return join(home, '.minikube')
  return /[\\/]\.minikube[\\/]?$/.test(given) ? given : join(given, '.minikube')
}
