import { asStrings, asTable } from '../edit/toml.ts'

/** Distinguishes the files that a client adapter can change. */
export type FileKind =
  | 'daemon.json'
  | 'buildkitd.toml'
  | 'containerd'
  | 'registries.conf'
  | 'kind cluster'
  | 'k3d cluster'
  | 'registries.yaml'

/** Names the program to which a file belongs. */
export interface RecognizedFile {
  /** Is undefined for a file that no client adapter can change. */
  readonly kind: FileKind | undefined
  /** Describes the file in errors: `a cluster file of kind`. */
  readonly is: string
  /** Holds the command to use instead; `FILE` stands for the path of the file. */
  readonly hint: string | undefined
}

type Content = Readonly<Record<string, unknown>>

/** Tells a kind from others. The first rule that fits counts. */
interface Rule extends RecognizedFile {
  matches(content: Content): boolean
}

const hasKey = (content: Content, ...keys: readonly string[]) => keys.some((key) => key in content)
const getText = (content: Content, key: string) => (typeof content[key] === 'string' ? content[key] : '')
const getApiVersion = (content: Content) => getText(content, 'apiVersion')
const isList = (content: Content, key: string) => Array.isArray(content[key])
const isMap = (content: Content, key: string) => asTable(content[key]) !== undefined

const dockerHint = 'mirror configure docker'
const podmanHint = 'mirror configure podman   (writes a drop-in beside it)'
const containerdHint = 'mirror configure containerd   (writes hosts.toml files, and says what config.toml needs)'
const k3sHint = 'sudo mirror configure k3s   (writes /etc/rancher/k3s/registries.yaml)'

/** Recognizes YAML files, and JSON files, because JSON is YAML too. */
export const knownDocuments: readonly Rule[] = [
  {
    kind: 'kind cluster',
    is: 'a cluster file of kind',
    hint: 'mirror configure kind --file FILE',
    matches: (content) => /^kind\.(?:x-k8s|sigs\.k8s)\.io\//.test(getApiVersion(content)),
  },
  {
    kind: 'k3d cluster',
    is: 'a cluster file of k3d',
    hint: 'mirror configure k3d --file FILE',
    matches: (content) => getApiVersion(content).startsWith('k3d.io/'),
  },
  {
    kind: undefined,
    is: 'a file of ctlptl',
    hint: 'ctlptl apply --filename FILE, then mirror configure kind --cluster NAME   (where its product is kind)',
    matches: (content) => getApiVersion(content).startsWith('ctlptl.dev/'),
  },
  {
    kind: undefined,
    is: "skaffold's configuration",
    hint: 'mirror configure skaffold',
    matches: (content) => getApiVersion(content).startsWith('skaffold/'),
  },
  {
    kind: undefined,
    is: 'a kubeconfig',
    hint: undefined,
    matches: (content) =>
      getText(content, 'kind') === 'Config' && hasKey(content, 'clusters', 'contexts', 'current-context'),
  },
  {
    kind: undefined,
    is: 'a Kubernetes manifest',
    hint: 'mirror configure kind   (or k3d, k3s, containerd: for the nodes that it runs on)',
    matches: (content) => getApiVersion(content) !== '' && getText(content, 'kind') !== '',
  },
  {
    kind: undefined,
    is: 'a Helm chart',
    hint: 'mirror configure kind   (or k3d, k3s, containerd: for the nodes that it runs on)',
    matches: (content) => /^v[12]$/.test(getApiVersion(content)) && hasKey(content, 'name', 'version'),
  },
  {
    kind: undefined,
    is: 'a Compose file',
    hint: 'mirror configure docker   (or podman: for the engine that runs it)',
    matches: (content) => isMap(content, 'services'),
  },
  {
    kind: undefined,
    is: 'a development container',
    hint: dockerHint,
    matches: (content) =>
      hasKey(content, 'customizations', 'postCreateCommand', 'remoteUser', 'dockerComposeFile', 'features') &&
      hasKey(content, 'image', 'build', 'dockerFile', 'dockerComposeFile'),
  },
  {
    kind: undefined,
    is: 'the configuration of the docker command (config.json)',
    hint: dockerHint,
    matches: (content) =>
      hasKey(
        content,
        'auths',
        'credsStore',
        'credHelpers',
        'HttpHeaders',
        'currentContext',
        'psFormat',
        'imagesFormat',
        'detachKeys',
        'cliPluginsExtraDirs',
        'plugins',
      ) && !hasKey(content, 'mirrors'),
  },
  {
    kind: undefined,
    is: "Docker Desktop's own settings",
    hint: dockerHint,
    matches: (content) =>
      hasKey(
        content,
        'settingsVersion',
        'SettingsVersion',
        'filesharingDirectories',
        'FilesharingDirectories',
        'AutoStart',
        'autoStart',
        'LicenseTermsVersion',
      ),
  },
  {
    kind: undefined,
    is: 'a policy of podman (policy.json)',
    hint: podmanHint,
    matches: (content) => isList(content, 'default') && hasKey(content, 'transports'),
  },
  {
    kind: undefined,
    is: 'a package.json',
    hint: undefined,
    matches: (content) =>
      hasKey(content, 'name', 'private') && hasKey(content, 'scripts', 'dependencies', 'devDependencies', 'workspaces'),
  },
  {
    kind: 'daemon.json',
    is: "dockerd's daemon.json",
    hint: 'mirror configure docker --file FILE',
    matches: (content) =>
      hasKey(
        content,
        'registry-mirrors',
        'insecure-registries',
        'exec-opts',
        'log-driver',
        'log-opts',
        'storage-driver',
        'storage-opts',
        'data-root',
        'live-restore',
        'default-address-pools',
        'bip',
        'userns-remap',
        'default-ulimits',
        'containerd-snapshotter',
      ),
  },
  {
    kind: 'registries.yaml',
    is: 'a registries.yaml of k3s',
    hint: 'mirror configure k3d --file FILE   (k3s itself: sudo mirror configure k3s)',
    matches: (content) =>
      (isMap(content, 'mirrors') || isMap(content, 'configs')) && !hasKey(content, 'upstreams', 'cache'),
  },
  {
    kind: undefined,
    is: "k3s's config.yaml",
    hint: k3sHint,
    matches: (content) =>
      hasKey(
        content,
        'write-kubeconfig-mode',
        'tls-san',
        'cluster-init',
        'node-label',
        'node-taint',
        'node-name',
        'node-ip',
        'kubelet-arg',
        'kube-apiserver-arg',
        'flannel-backend',
        'cluster-cidr',
        'service-cidr',
        'private-registry',
        'embedded-registry',
        'system-default-registry',
        'disable',
        'data-dir',
        'token',
        'agent-token',
        'secrets-encryption',
      ),
  },
  {
    kind: undefined,
    is: "this mirror's own configuration (mirror.yaml)",
    hint: 'mirror up   (reads it)',
    matches: (content) => hasKey(content, 'upstreams', 'cache', 'allowedHosts', 'defaultUpstream'),
  },
  {
    kind: undefined,
    is: 'the configuration of a Distribution registry',
    hint: undefined,
    matches: (content) =>
      hasKey(content, 'version') && isMap(content, 'storage') && hasKey(content, 'http', 'proxy', 'log'),
  },
  {
    kind: undefined,
    is: 'the configuration of a Colima or Lima machine',
    hint: dockerHint,
    matches: (content) =>
      hasKey(content, 'vmType', 'mountType', 'forwardAgent', 'rosetta') &&
      hasKey(content, 'cpu', 'cpus', 'memory', 'images', 'mounts', 'runtime'),
  },
]

/** Recognizes files by name: their formats are not parsed. */
export const knownNames: readonly [RegExp, RecognizedFile][] = [
  [
    /^(?:Dockerfile|Containerfile)(?:\..+)?$/,
    {
      kind: undefined,
      is: 'a Dockerfile',
      hint: 'mirror configure docker   (or podman, buildkit: for what builds it)',
    },
  ],
  [/^Tiltfile$/, { kind: undefined, is: 'a Tiltfile', hint: 'mirror configure tilt' }],
]

/** Recognizes TOML files. */
export const knownTables: readonly Rule[] = [
  {
    kind: 'registries.conf',
    is: "podman's registries.conf",
    hint: podmanHint,
    matches: (content) =>
      isList(content, 'registry') ||
      isMap(content, 'registries') ||
      hasKey(
        content,
        'unqualified-search-registries',
        'short-name-mode',
        'credential-helpers',
        'additional-layer-store-auth-helper',
        'aliases',
      ),
  },
  {
    kind: undefined,
    is: 'a hosts.toml of containerd',
    hint: containerdHint,
    matches: (content) =>
      isMap(content, 'host') || (typeof content['server'] === 'string' && /^https?:/.test(content['server'])),
  },
  {
    kind: 'containerd',
    is: "containerd's config.toml",
    hint: containerdHint,
    matches: (content) =>
      Object.keys(asTable(content['plugins']) ?? {}).some(
        (name) => name === 'cri' || name.startsWith('io.containerd.'),
      ) ||
      hasKey(
        content,
        'disabled_plugins',
        'required_plugins',
        'proxy_plugins',
        'stream_processors',
        'oom_score',
        'plugin_dir',
      ) ||
      (typeof content['version'] === 'number' &&
        hasKey(content, 'root', 'state', 'grpc', 'ttrpc', 'imports', 'plugins')) ||
      (isList(content, 'imports') && asStrings(content['imports']).length > 0),
  },
  {
    kind: undefined,
    is: "nerdctl's nerdctl.toml",
    hint: containerdHint,
    matches: (content) =>
      hasKey(content, 'hosts_dir', 'cni_path', 'cni_netconfpath', 'cgroup_manager', 'insecure_registry'),
  },
  {
    kind: undefined,
    is: 'a containers.conf of podman',
    hint: podmanHint,
    matches: (content) => isMap(content, 'containers') || isMap(content, 'engine') || isMap(content, 'machine'),
  },
  {
    kind: undefined,
    is: 'a storage.conf of podman',
    hint: podmanHint,
    matches: (content) => isMap(content, 'storage'),
  },
  {
    kind: undefined,
    is: "CRI-O's configuration",
    hint: podmanHint,
    matches: (content) => isMap(content, 'crio'),
  },
  {
    kind: undefined,
    is: "GitLab Runner's config.toml",
    hint: dockerHint,
    matches: (content) => isList(content, 'runners') || hasKey(content, 'concurrent', 'check_interval'),
  },
  {
    kind: undefined,
    is: "a program's package (Cargo.toml, pyproject.toml)",
    hint: undefined,
    matches: (content) =>
      isMap(content, 'package') ||
      isMap(content, 'project') ||
      isMap(content, 'build-system') ||
      isMap(content, 'dependencies'),
  },
  {
    kind: 'buildkitd.toml',
    is: "BuildKit's buildkitd.toml",
    hint: 'mirror configure buildkit --file FILE',
    matches: (content) =>
      isMap(content, 'worker') || isMap(content, 'registry') || hasKey(content, 'insecure-entitlements'),
  },
]
