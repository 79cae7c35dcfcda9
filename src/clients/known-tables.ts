import { containerdHint, dockerHint, has, isList, isMap, podmanHint, type Rule } from './files/known.ts'
import { stringsOf, tableOf } from './read-toml.ts'

/** Files in TOML. */
export const knownTables: readonly Rule[] = [
  {
    kind: 'registries.conf',
    is: "podman's registries.conf",
    hint: podmanHint,
    fits: (content) =>
      isList(content, 'registry') ||
      isMap(content, 'registries') ||
      has(
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
    fits: (content) =>
      isMap(content, 'host') || (typeof content['server'] === 'string' && /^https?:/.test(content['server'])),
  },
  {
    kind: 'containerd',
    is: "containerd's config.toml",
    hint: containerdHint,
    fits: (content) =>
      Object.keys(tableOf(content['plugins']) ?? {}).some(
        (name) => name === 'cri' || name.startsWith('io.containerd.'),
      ) ||
      has(
        content,
        'disabled_plugins',
        'required_plugins',
        'proxy_plugins',
        'stream_processors',
        'oom_score',
        'plugin_dir',
      ) ||
      (typeof content['version'] === 'number' &&
        has(content, 'root', 'state', 'grpc', 'ttrpc', 'imports', 'plugins')) ||
      (isList(content, 'imports') && stringsOf(content['imports']).length > 0),
  },
  {
    kind: undefined,
    is: "nerdctl's nerdctl.toml",
    hint: containerdHint,
    fits: (content) => has(content, 'hosts_dir', 'cni_path', 'cni_netconfpath', 'cgroup_manager', 'insecure_registry'),
  },
  {
    kind: undefined,
    is: 'a containers.conf of podman',
    hint: podmanHint,
    fits: (content) => isMap(content, 'containers') || isMap(content, 'engine') || isMap(content, 'machine'),
  },
  { kind: undefined, is: 'a storage.conf of podman', hint: podmanHint, fits: (content) => isMap(content, 'storage') },
  {
    kind: undefined,
    is: "CRI-O's configuration",
    hint: podmanHint,
    fits: (content) => isMap(content, 'crio'),
  },
  {
    kind: undefined,
    is: "GitLab Runner's config.toml",
    hint: dockerHint,
    fits: (content) => isList(content, 'runners') || has(content, 'concurrent', 'check_interval'),
  },
  {
    kind: undefined,
    is: "a program's package (Cargo.toml, pyproject.toml)",
    hint: undefined,
    fits: (content) =>
      isMap(content, 'package') ||
      isMap(content, 'project') ||
      isMap(content, 'build-system') ||
      isMap(content, 'dependencies'),
  },
  {
    kind: 'buildkitd.toml',
    is: "BuildKit's buildkitd.toml",
    hint: 'mirror configure buildkit --file FILE',
    fits: (content) => isMap(content, 'worker') || isMap(content, 'registry') || has(content, 'insecure-entitlements'),
  },
]
