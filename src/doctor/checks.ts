import type { CheckGroup } from '../admin/activity.ts'
import { exitCode, findNearest, MirrorError } from '../lib/errors.ts'

/** Describes a check of `mirror doctor`. */
export interface Check {
  /** Stays the same across releases, because scripts select by it. Its first part is the group. */
  readonly id: string
  readonly group: CheckGroup
  /** States what holds when all is well, in one sentence. */
  readonly what: string
}

/** Maps the checks of each group to what holds when all is well. */
const sentences: Readonly<Record<CheckGroup, Readonly<Record<string, string>>>> = {
  mirror: {
    runs: 'The mirror runs and answers.',
    version: 'The running mirror has the version of this command.',
    config: 'mirror.yaml is valid, and the running mirror uses it.',
    ports: 'No other program has a port of the mirror.',
    disk: 'The disk has room above the reserve (cache.minFree).',
    lock: 'No mirror has ended without being stopped, and the state file names the mirror that answers.',
    clock: 'The clock agrees with those of the upstreams, and has not jumped.',
    files: 'The limit on open files leaves room for many clients.',
    records: 'All records of the registry and of configured clients are readable.',
    troubles: 'The mirror reports no trouble of its own.',
  },
  upstreams: {
    reachable: 'The upstream answers.',
    tls: 'The certificate of the upstream is trusted and valid.',
    proxy: 'The proxy accepts connections to the upstream.',
    token: 'The token service of the upstream answers.',
    credential: 'The credential for the upstream is readable and valid.',
    time: 'The upstream answers within two seconds.',
    quota: 'The upstream grants more pulls.',
  },
  listeners: {
    loopback: 'The mirror answers on each of its addresses.',
    network: 'The mirror answers on the gateway of each Docker network that it serves.',
    node: 'Each running kind node reaches the mirror.',
    proxy: 'No proxy of an engine or a node stands before the mirror.',
    firewall: 'No firewall drops connections to the mirror.',
  },
  clients: {
    configured: 'The client is configured for the mirror.',
    exists: 'The cluster or the file that was configured still exists.',
    files: 'The files of the client are as mirror wrote them.',
    address: 'The client has the current address of the mirror.',
    running: 'The running client has the configuration.',
    loopback: 'No client in a container or a virtual machine has a loopback address.',
    pull: 'A pull by the client reaches the mirror (only with --pull).',
    'hosts.syntax': 'Each hosts.toml is valid TOML without a repeated [host] table.',
    'hosts.capability': 'Each hosts.toml names only capabilities that its reader knows.',
    'hosts.scheme': 'Each host of a hosts.toml is a URL that begins with http:// or https://.',
    'hosts.server': 'Each server of a hosts.toml is a registry.',
    'hosts.path': 'Each host with /v2 in its path has override_path.',
    'hosts.push': 'Each hosts.toml limits its mirrors to pull and resolve.',
    'hosts.plain': 'No host with plain HTTP has TLS settings, which make the client try HTTPS first.',
    'hosts.timeout': 'Each dial_timeout of a hosts.toml is a duration.',
    'hosts.certificates': 'Each certificate beside a hosts.toml is named in it.',
    'hosts.swallowed': 'The server of each hosts.toml stands above the tables of its hosts.',
    'hosts.hub': 'The folder of Docker Hub is docker.io.',
    'hosts.bypass': 'No hosts.toml of a mirrored registry leaves out the mirror, while others name it.',
    'containerd.syntax': 'config.toml of containerd is valid TOML.',
    'containerd.old-mirrors':
      'config.toml has no registry.mirrors, which containerd 2.4 ignores and which break config_path.',
    'containerd.config-path': 'config_path names the folder that has the hosts.toml files.',
    'containerd.two-folders': 'config_path names one folder, because containerd 2.1 and later ignore several.',
    'containerd.section': 'config_path is in the section that this containerd reads.',
    'containerd.swallowed': 'No key of config.toml stands in a table that swallows it.',
    'containerd.default': 'No _default of an earlier folder hides the hosts.toml of a later one.',
    'kind.hosts': 'Each kind node has the hosts.toml files of the mirror.',
    'kind.mount': 'The folder that kind nodes mount has no colon in its path.',
    'kind.patch': 'The cluster file has no patch that kind skips or that breaks config_path.',
    'docker.syntax': 'daemon.json is valid.',
    'docker.url': 'Each registry mirror in daemon.json is a URL without a path.',
    'docker.order': 'The mirror is the first registry mirror in daemon.json.',
    'docker.flags': 'No flag of dockerd repeats a key of daemon.json.',
    'docker.insecure': 'A mirror with plain HTTP is in insecure-registries where dockerd needs it.',
    'docker.ignored-insecure': 'No registry in insecure-registries has a hosts.toml, which replaces that entry.',
    'docker.ignored-folder': 'The engine reads the hosts.toml files in certs.d.',
    'docker.empty-key': 'An earlier undo is complete: the engine has no mirror that daemon.json does not name.',
    'podman.syntax': 'Each registries.conf is valid TOML.',
    'podman.old-style': 'No registries.conf is in the first version of its format, or mixes both.',
    'podman.hidden': 'No registries.conf of the user hides the files of the system.',
    'podman.variable': 'No variable makes podman read other files.',
    'podman.overridden': 'No later file replaces the tables of the mirror, and no longer prefix counts before them.',
    'podman.swallowed': 'No key of the file follows a table that swallows it.',
    'podman.location': 'Each location is a host without a scheme, and that of the mirror has the name of the registry.',
    'podman.hub': 'The table of Docker Hub has the prefix docker.io.',
    'podman.insecure': 'A mirror with plain HTTP has insecure = true.',
    'podman.blocked': 'No registry is blocked.',
    'podman.digest-only': 'The mirror serves tags as well as digests.',
    'podman.drop-in': 'Each drop-in has a name that ends in .conf.',
    'buildkit.syntax': 'buildkitd.toml is valid TOML.',
    'buildkit.http': 'http = true is in the table of the mirror, not in that of a registry.',
    'buildkit.scheme': 'The mirrors in buildkitd.toml have no scheme.',
    'buildkit.hub': 'The table of Docker Hub is named docker.io.',
    'k3s.syntax': 'registries.yaml is valid YAML.',
    'k3s.scheme': 'Each endpoint in registries.yaml begins with http:// or https://.',
    'k3s.duplicate': 'No registry in registries.yaml names an endpoint twice.',
    'k3s.hub': 'Each entry of registries.yaml is the host of a registry; Docker Hub is docker.io.',
    'k3s.rewrite': 'No entry with the mirror rewrites names.',
    'k3s.bypass': 'No entry of a mirrored registry leaves out the mirror, while others name it.',
    'k3s.template': 'No template of config.toml replaces the part that reads registries.yaml.',
    'kaniko.hub': 'The map of kaniko names Docker Hub index.docker.io.',
    'kaniko.path': 'The map of kaniko has no scheme, and no path that begins with a host name.',
  },
  use: {
    seen: 'Each configured client has used the mirror in the last seven days.',
    hosts: 'No client was refused because of its Host header.',
    registries: 'No client asked for a registry that is not mirrored.',
    'head-only': 'No client has fallen back to the origin.',
  },
}

/** Lists all checks, group by group. */
export const checks: readonly Check[] = Object.entries(sentences).flatMap(([group, all]) =>
  Object.entries(all).map(([name, what]) => ({ id: `${group}.${name}`, group: group as CheckGroup, what })),
)

const byId = new Map(checks.map((check) => [check.id, check]))

/** Returns the check of an id. */
export function getCheck(id: string): Check {
  const check = byId.get(id)
  if (check === undefined) throw new Error(`There is no check ${id}`)
  return check
}

/**
 * Returns a function that reports whether an id is selected by ids or their first parts; all are without any. Throws MirrorError
 * (usage) for an unknown one.
 */
export function createSelection(only: readonly string[]): (id: string) => boolean {
  for (const name of only) {
    if (checks.some(({ id }) => isBelow(id, name))) continue
    const suggestion = findNearest(name, [...new Set(checks.flatMap(({ id }) => listParts(id)))])
    throw new MirrorError(
      `There is no check ${JSON.stringify(name)}.${suggestion === undefined ? '' : ` Did you mean ${suggestion}?`}`,
      { exit: exitCode.usage, hints: ['mirror doctor --list-checks'] },
    )
  }
  return (id) => only.length === 0 || only.some((name) => isBelow(id, name))
}

/** Lists the names that select an id: its first parts, and itself. */
function listParts(id: string): string[] {
  const parts = id.split('.')
  return parts.map((_, at) => parts.slice(0, at + 1).join('.'))
}

function isBelow(id: string, name: string): boolean {
  return id === name || id.startsWith(`${name.replace(/\.$/, '')}.`)
}

/** Begins the reason of a check that was skipped because it was late. */
export const lateStart = 'the check did not end within '
