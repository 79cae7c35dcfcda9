import { chmod, copyFile, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { existsSync } from 'node:fs'
import type { Dockerd } from './dockerd.ts'
import { run } from './run.ts'

// Lists the programs of a node, and those that kind and the tests run in it.
const containerdPrograms = ['/usr/bin/containerd', '/usr/bin/containerd-shim-runc-v2', '/usr/bin/ctr']
const ordinary =
  'base64 bash cat chmod chown cp dirname env find ls mkdir mktemp mount mv pgrep readlink rm rmdir setsid sleep stat sync uname'
const systemPrograms = ['/usr/sbin/runc', ...ordinary.split(' ').map((name) => `/usr/bin/${name}`)]

/** containerdConfig is the file of every kindest/node up to kind 0.33: version 2, without a section on registries. */
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd]
  discard_unpacked_layers = true
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  tolerate_missing_hugepages_controller = true
  restrict_oom_score_adj = false
`

const entrypoint = `#!/bin/bash
systemctl start containerd
echo "[  OK  ] Reached target multi-user.target - Multi-User System."
trap 'exit 0' TERM INT 37
while :; do sleep 1; done
`

const systemctl = `#!/bin/bash
case "$1" in start|restart)
  p=$(pgrep -x containerd)
  [ -n "$p" ] && { kill $p; while kill -0 $p 2>/dev/null; do sleep .05; done; }
  setsid containerd >> /var/log/containerd.log 2>&1 < /dev/null &
  for i in {1..100}; do [ -S /run/containerd/containerd.sock ] && break; sleep .05; done;;
esac
exit 0
`

const kubeadm = `#!/bin/bash
[ "$1" = init ] && cat > /etc/kubernetes/admin.conf <<'END'
apiVersion: v1
kind: Config
clusters: [{name: kind, cluster: {server: "https://kind-control-plane:6443"}}]
contexts: [{name: kubernetes-admin@kind, context: {cluster: kind, user: kubernetes-admin}}]
current-context: kubernetes-admin@kind
users: [{name: kubernetes-admin, user: {}}]
END
exit 0
`

// Replaces kubectl by a script that keeps one ConfigMap, because the cluster has no Kubernetes.
const kubectl = `#!/bin/bash
kept=/var/lib/stand-in-configmap.yaml
case "$*" in
  *" get namespace "*) echo namespace/kube-public;;
  *" get configmap "*) [ -f $kept ] && cat $kept;;
  *" apply "*) cat > $kept;;
  *" delete configmap "*) rm -f $kept;;
esac
exit 0
`

const files: Readonly<Record<string, string>> = {
  '/kind/version': 'v1.32.2\n',
  '/kind/manifests/default-cni.yaml': '',
  '/kind/manifests/default-storage.yaml': '',
  '/etc/containerd/config.toml': containerdConfig,
  '/usr/local/bin/entrypoint': entrypoint,
  '/usr/local/bin/systemctl': systemctl,
  '/usr/local/bin/kubeadm': kubeadm,
  '/usr/local/bin/kubectl': kubectl,
  '/usr/local/bin/kubelet': '#!/bin/bash\nexit 0\n',
}

const folders = ['dev', 'etc/containerd/certs.d', 'etc/kubernetes', 'lib/modules', 'proc', 'root', 'run', 'sys', 'tmp']

/**
 * Imports a substitute for kindest/node, made from programs of this machine: a real containerd (below `root`; the system's when
 * empty) that pulls images, and the other parts that kind checks. It has no Kubernetes.
 */
export async function importKindNodeImage({ docker }: Dockerd, root: string, name: string): Promise<void> {
  const work = await mkdtemp(join(tmpdir(), 'mirror-e2e-node-'))
  try {
    const tree = join(work, 'tree')
    for (const folder of [...folders, 'bin', 'usr/bin', 'var/lib', 'var/log']) {
      await mkdir(join(tree, folder), { recursive: true })
    }
    for (const program of containerdPrograms) await copyProgram(join(root, program), program, tree)
    for (const program of systemPrograms) await copyProgram(program, program, tree)
    for (const shell of ['bash', 'sh']) await symlink('/usr/bin/bash', join(tree, 'bin', shell))
    await symlink('/usr/sbin/runc', join(tree, 'usr/bin/runc'))
    for (const [path, text] of Object.entries(files)) {
      await mkdir(dirname(join(tree, path)), { recursive: true })
      await writeFile(join(tree, path), text)
      await chmod(join(tree, path), path.startsWith('/usr/local/bin/') ? 0o755 : 0o644)
    }
    const archive = join(work, 'tree.tar')
    await run('tar', ['-C', tree, '--numeric-owner', '--owner=0', '--group=0', '-cf', archive, '.'])
    const path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
    const changes = ['ENTRYPOINT ["/usr/local/bin/entrypoint"]', `ENV PATH=${path} container=docker`]
    await docker('import', ...changes.flatMap((change) => ['--change', change]), archive, name)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Copies a program and its libraries to the paths at which the loader looks for them. */
async function copyProgram(from: string, to: string, tree: string): Promise<void> {
  // Ignores the failure of ldd on a statically linked program.
  const linked = await run('ldd', [from]).catch(() => '')
  const libraries = linked.match(/\/\S+(?= \()/g) ?? []
  for (const [source, target] of [[from, to] as const, ...libraries.map((path) => [path, path] as const)]) {
    const place = join(tree, target)
    if (existsSync(place)) continue
    await mkdir(dirname(place), { recursive: true })
    await copyFile(source, place)
    await chmod(place, 0o755)
  }
}
