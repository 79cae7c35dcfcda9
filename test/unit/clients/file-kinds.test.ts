import { describe, expect, test } from 'vitest'
import { planBuildkit } from '../../../src/clients/buildkit/plan.ts'
import { planContainerd } from '../../../src/clients/containerd/plan.ts'
import { planDaemonJson } from '../../../src/clients/docker/daemon-json.ts'
import { recognizeFile } from '../../../src/clients/files/kinds.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'
import { planK3d } from '../../../src/clients/k3s/k3d.ts'
import { planRegistries } from '../../../src/clients/k3s/k3s.ts'
import { planKind } from '../../../src/clients/kind/cluster-file.ts'
import { planPodman } from '../../../src/clients/podman/plan.ts'

const mirror = {
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}

/** samples are files of users, each with its name in a refusal, its text, and the clients that accept it. */
const samples: Readonly<Record<string, readonly [is: string, text: string, takenBy: readonly string[]]>> = {
  'kind.yaml': [
    'a cluster file of kind',
    'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n',
    ['kind'],
  ],
  'kind.json': ['a cluster file of kind', '{"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4"}\n', ['kind']],
  'k3d.yaml': ['a cluster file of k3d', 'apiVersion: k3d.io/v1alpha5\nkind: Simple\nmetadata: {name: dev}\n', ['k3d']],
  'k3d-4.yaml': ['a cluster file of k3d', 'apiVersion: k3d.io/v1alpha2\nkind: Simple\nname: dev\n', ['k3d']],
  'ctlptl.yaml': ['a file of ctlptl', 'apiVersion: ctlptl.dev/v1alpha1\nkind: Cluster\nproduct: k3d\n', []],
  'ctlptl-two.yaml': [
    'a file of ctlptl',
    '# two\n---\napiVersion: ctlptl.dev/v1alpha1\nkind: Registry\n---\napiVersion: ctlptl.dev/v1alpha1\nkind: Cluster\n',
    [],
  ],
  'compose.yaml': ['a Compose file', 'services:\n  web:\n    image: nginx\n', []],
  'compose-crlf.yaml': ['a Compose file', '\uFEFFservices:\r\n  web: {image: nginx}\r\n', []],
  'deployment.yaml': [
    'a Kubernetes manifest',
    'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n---\napiVersion: v1\nkind: Service\n',
    [],
  ],
  'pod.json': ['a Kubernetes manifest', '{"apiVersion": "v1", "kind": "Pod"}', []],
  kubeconfig: ['a kubeconfig', 'apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: []\n', []],
  'skaffold.yaml': ["skaffold's configuration", 'apiVersion: skaffold/v4beta11\nkind: Config\nbuild: {}\n', []],
  'Chart.yaml': ['a Helm chart', 'apiVersion: v2\nname: web\nversion: 0.1.0\n', []],
  'registries.yaml': [
    'a registries.yaml of k3s',
    'mirrors:\n  docker.io:\n    endpoint: ["https://a.example"]\n',
    ['k3d', 'k3s'],
  ],
  'config.yaml': ["k3s's config.yaml", 'write-kubeconfig-mode: "0644"\ntls-san:\n- a.example\n', []],
  'mirror.yaml': ["this mirror's own configuration", 'cache:\n  maxSize: 1GiB\n', []],
  'config.json': ['the configuration of the docker command', '{"auths": {"ghcr.io": {}}, "credsStore": "desktop"}', []],
  'settings-store.json': ["Docker Desktop's own settings", '{"AutoStart": false, "SettingsVersion": 43}', []],
  'package.json': ['a package.json', '{"name": "a", "private": true, "scripts": {}}', []],
  'policy.json': ['a policy of podman', '{"default": [{"type": "reject"}], "transports": {}}', []],
  'devcontainer.json': ['a development container', '{"image": "x", "features": {}}', []],
  'daemon.json': ["dockerd's daemon.json", '{"registry-mirrors": [], "log-driver": "local"}\n', ['docker']],
  'buildkitd.toml': [
    "BuildKit's buildkitd.toml",
    '[worker.oci]\n  gc = true\n[registry."a.example"]\n  http = true\n',
    ['buildkit'],
  ],
  'config.toml': ["containerd's config.toml", 'version = 2\nroot = "/var/lib/containerd"\n', ['containerd']],
  'config-4.toml': [
    "containerd's config.toml",
    'version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/x"\n',
    ['containerd'],
  ],
  'config-1.toml': ["containerd's config.toml", '[plugins.cri]\nsandbox_image = "x"\n', ['containerd']],
  'registries.conf': [
    "podman's registries.conf",
    'unqualified-search-registries = ["docker.io"]\n[[registry]]\nlocation = "a.example"\n',
    ['podman'],
  ],
  'old-registries.conf': ["podman's registries.conf", '[registries.search]\nregistries = ["docker.io"]\n', ['podman']],
  'hosts.toml': [
    'a hosts.toml of containerd',
    'server = "https://a.example"\n[host."https://b.example"]\ncapabilities = ["pull"]\n',
    [],
  ],
  'nerdctl.toml': ["nerdctl's nerdctl.toml", 'namespace = "k8s.io"\nhosts_dir = ["/etc/containerd/certs.d"]\n', []],
  'containers.conf': ['a containers.conf of podman', '[engine]\nruntime = "crun"\n', []],
  'storage.conf': ['a storage.conf of podman', '[storage]\ndriver = "overlay"\n', []],
  'Cargo.toml': ["a program's package", '[package]\nname = "a"\n', []],
  Dockerfile: ['a Dockerfile', 'FROM alpine\nRUN true\n', []],
  Tiltfile: ['a Tiltfile', "k8s_yaml('a.yaml')\n", []],
}

const folder = '/home/me'
const join = (...parts: string[]) => parts.join('/')
/** writers plan a change of each client, with the file in place of its own. */
const writers: Readonly<Record<string, (path: string, files: FilesSnapshot) => unknown>> = {
  docker: (path, files) =>
    planDaemonJson(
      mirror,
      {
        daemonJson: path,
        certsFolder: undefined,
        version: undefined,
        imageStore: undefined,
        mirrors: [],
        insecure: [],
        flags: {},
      },
      files,
    ),
  buildkit: (path, files) => planBuildkit(mirror, { path, ca: { path: '/ca', name: '/ca' } }, files),
  kind: (path, files) => planKind(mirror, { folder: '/state', file: path, join }, files),
  k3d: (path, files) => planK3d(mirror, { cluster: 'dev', path, caPath: '/ca/x', hosting: undefined }, files),
  k3s: (path, files) => planRegistries(mirror, path, { path: '/ca', name: '/ca' }, files),
  podman: (path, files) =>
    planPodman(
      mirror,
      { files: { system: ['/etc/containers'], user: undefined, named: path, modern: false }, scope: 'system' },
      files,
    ),
  containerd: (path, files) =>
    planContainerd(
      mirror,
      {
        hosts: { name: '/c', path: '/c' },
        otherFolders: [],
        configFile: { name: path, path },
        imports: [],
        dump: undefined,
        version: undefined,
        referrers: false,
        nerdctlFile: { name: '/n', path: '/n' },
        rootless: false,
      },
      files,
    ),
}

describe.each(Object.entries(samples))('the file %s', (name, [is, text, takenBy]) => {
  const path = join(folder, name)
  const files = new FilesSnapshot(new Map([[path, Buffer.from(text)]]))

  test('is recognized', () => {
    expect(recognizeFile(path, text)?.is).toContain(is)
  })

  test.each(Object.keys(writers))('is accepted by %s, or refused with the name of its program', (client) => {
    const plan = () => writers[client]!(path, files)
    if (takenBy.includes(client)) expect(plan).not.toThrow()
    else
      expect(plan).toThrow(
        expect.objectContaining({ exit: 2, message: expect.stringContaining(`${path} looks like ${is}`) as string }),
      )
  })
})

describe('a file of an unknown program', () => {
  test.each([
    ['docker', '{"colour": "blue"}'],
    ['buildkit', 'colour = "blue"\n[shape]\nround = true\n'],
    ['k3d', 'colour: blue\n'],
    ['k3s', '{"colour": "blue"}'],
  ])('is refused by %s when that knows none of its keys', (client, text) => {
    const files = new FilesSnapshot(new Map([['/x', Buffer.from(text)]]))
    expect(() => writers[client]!('/x', files)).toThrow(/^\/x is not a .*: it sets nothing but colour/)
  })

  test.each([
    ['buildkit', '[log]\nlevel = "info"\n[entryPoints.web]\naddress = ":80"\n[api]\n', 'entryPoints, api'],
    ['docker', '{"debug": true, "colour": "blue", "shape": "round"}', 'colour, shape'],
  ])('is refused by %s when that knows fewer than half of its keys', (client, text, unknown) => {
    const files = new FilesSnapshot(new Map([['/x', Buffer.from(text)]]))
    expect(() => writers[client]!('/x', files)).toThrow(`most of what it sets is unknown there: ${unknown}.`)
  })

  test.each([
    ['docker', '{\n  // ours\n  "debug": true\n}\n', 'line 2, column 3'],
    ['docker', '{"colour": "blue",}\n', 'a comma too many'],
    ['buildkit', 'colour = blue\n', '/x:1:10'],
    ['k3s', 'colour: [\n', 'line 2'],
  ])('is refused by %s with the syntax error when it is invalid: %j', (client, text, why) => {
    const files = new FilesSnapshot(new Map([['/x', Buffer.from(text)]]))
    expect(() => writers[client]!('/x', files)).toThrow(why)
  })

  test.each([
    ['docker', '{"debug": true, "a-key-of-tomorrow": 1}\n'],
    ['docker', '{}\n'],
    ['buildkit', 'debug = true\n'],
    ['buildkit', 'tomorrow = 1\n[next]\n[worker.oci]\ngc = true\n'],
    ['buildkit', '# only a comment\r\n'],
    ['buildkit', ''],
    ['kind', '# only a comment\n'],
    ['k3d', ''],
    ['k3d', '---\n# nothing\n'],
    ['k3s', 'configs:\n  "a.example": {}\n'],
    ['containerd', 'version = 3\n'],
    ['podman', ''],
  ])('is accepted by %s when nothing rules it out: %j', (client, text) => {
    const files = new FilesSnapshot(new Map([['/x', Buffer.from(text)]]))
    expect(() => writers[client]!('/x', files)).not.toThrow()
  })
})
