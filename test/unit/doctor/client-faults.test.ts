import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { getAdapter } from '../../../src/clients/adapters.ts'
import { explainUselessConfigure, readFiles, type Rehearsal } from '../../../src/clients/configure.ts'
import { inspectBuildkit } from '../../../src/clients/buildkit/inspect.ts'
import { inspectContainerdConfig } from '../../../src/clients/containerd/inspect-config.ts'
import type { DockerTarget } from '../../../src/clients/docker/daemon-json.ts'
import { inspectDocker } from '../../../src/clients/docker/inspect.ts'
import { inspectKanikoVariables } from '../../../src/clients/kaniko.ts'
import { inspectKindFiles, inspectKindNodes } from '../../../src/clients/kind/inspect.ts'
import { inspectPodman } from '../../../src/clients/podman/inspect.ts'
import type { PodmanTarget } from '../../../src/clients/podman/registries-conf.ts'
import {
  type ClientName,
  type ClientOptions,
  type ConfigTarget,
  FilesSnapshot,
  type Finding,
  type Machine,
} from '../../../src/clients/types.ts'
import { checks } from '../../../src/doctor/checks.ts'
import { MirrorError } from '../../../src/lib/errors.ts'
import { inspectTarget } from '../../../src/doctor/client-files.ts'
import { toOutcome } from '../../../src/doctor/clients.ts'
import { temporaryHome } from '../../support/mirror.ts'

const cache = 'http://127.0.0.1:5055'
const header = '# Written by mirror. To take it back: mirror configure --undo\n'
const hosts = `server = "https://registry-1.docker.io"\n[host."${cache}"]\n  capabilities = ["pull", "resolve"]\n`
const configPath =
  'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'
const table = (more: string) => `[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n${more}`
const mirrorTable = '[[registry.mirror]]\nlocation = "127.0.0.1:5055/docker.io"\n'

interface Fault {
  /** Names the fault; its check has the id `clients.<fault>`. */
  readonly fault: string
  readonly state: 'warn' | 'fail'
  /** Holds the command that mends it, or a part of the advice. */
  readonly mend: string
  readonly client: ClientName
  /** Holds the files below the root of the machine. */
  readonly files: Readonly<Record<string, string>>
  readonly options?: Partial<ClientOptions>
  /** Distinguishes cases of the same fault. */
  readonly when?: string
}

const containerdHosts = 'etc/containerd/certs.d/docker.io/hosts.toml'
/** Returns a fault of a hosts.toml, which mirror wrote or the user. */
function hostsFault(
  fault: string,
  state: Fault['state'],
  text: string,
  mend: string,
  more: Partial<Fault> = {},
): Fault {
  const files = { 'etc/containerd/config.toml': configPath, [containerdHosts]: text }
  return { fault: `hosts.${fault}`, state, mend, client: 'containerd', files, ...more }
}

const engine = { clientVersion: '29.0', imageStore: 'containerd' } as const
const oldEngine = { clientVersion: '26.1', imageStore: 'classic' } as const
const userTable = 'etc/containers/registries.conf.d/90-user.conf'
const ownTable = 'etc/containers/registries.conf.d/50-mirror.conf'
const buildkitd = 'etc/buildkit/buildkitd.toml'
const registriesYaml = 'etc/rancher/k3s/registries.yaml'
const templates = 'var/lib/rancher/k3s/agent/etc/containerd'

const faults: readonly Fault[] = [
  hostsFault('syntax', 'fail', `${hosts}[host."${cache}"]\n`, 'Correct ', { when: 'with a repeated table' }),
  hostsFault('syntax', 'fail', 'server = docker.io\n', 'Correct ', { when: 'with broken TOML' }),
  hostsFault('syntax', 'fail', `${header}${hosts}[host."${cache}"]\n`, 'mirror configure containerd --scope system', {
    when: 'that mirror wrote',
  }),
  hostsFault('capability', 'fail', hosts.replace('"pull"', '"fetch"'), 'Remove "fetch" from the capabilities'),
  hostsFault(
    'capability',
    'fail',
    `${header}${hosts.replace('"pull"', '"pull", "referrers"')}`,
    'mirror configure containerd --scope system',
    {
      when: 'that only newer versions know',
      options: { clientVersion: '1.7.24' },
    },
  ),
  hostsFault(
    'scheme',
    'warn',
    hosts.replace(cache, '127.0.0.1:5055'),
    'Write the host as [host."http://127.0.0.1:5055"]',
  ),
  hostsFault('scheme', 'fail', hosts.replace('http://', 'htp://'), 'Write the host as', { when: 'that is unknown' }),
  hostsFault('server', 'warn', hosts.replace('registry-1.', ''), 'server = "https://registry-1.docker.io"'),
  hostsFault('path', 'warn', hosts.replace(cache, `${cache}/v2/docker.io`), 'override_path = true'),
  hostsFault('push', 'warn', `[host."${cache}"]\n`, 'capabilities = ["pull", "resolve"]'),
  hostsFault('plain', 'warn', `${hosts}  skip_verify = true\n`, 'Remove skip_verify'),
  hostsFault('timeout', 'fail', `${hosts}  dial_timeout = "soon"\n`, 'dial_timeout'),
  hostsFault('certificates', 'warn', hosts, 'ca = ["ca.crt"]', {
    client: 'docker',
    options: engine,
    files: { 'etc/docker/certs.d/docker.io/hosts.toml': hosts, 'etc/docker/certs.d/docker.io/ca.crt': 'PEM\n' },
  }),
  hostsFault('syntax', 'fail', `[[host]]\nurl = "${cache}"\n`, 'Write [host."http://…"]', {
    when: 'without a table of hosts',
  }),
  hostsFault('syntax', 'warn', hosts.replace('[host.', '[hosts.'), 'Remove hosts', { when: 'with a misspelled table' }),
  hostsFault(
    'capability',
    'fail',
    hosts.replace('["pull", "resolve"]', '"pull"'),
    'Write capabilities = ["pull", "resolve"]',
    {
      when: 'that are no list',
    },
  ),
  hostsFault(
    'swallowed',
    'warn',
    `[host."${cache}"]\n  capabilities = ["pull", "resolve"]\nserver = "https://registry-1.docker.io"\n`,
    'Move server above the first table',
  ),
  hostsFault('hub', 'warn', hosts, 'to docker.io', {
    files: {
      'etc/containerd/config.toml': configPath,
      'etc/containerd/certs.d/registry-1.docker.io/hosts.toml': hosts,
    },
  }),
  ...(['containerd', 'docker', 'minikube'] as const).map((client) => {
    const root = {
      containerd: 'etc/containerd/certs.d',
      docker: 'etc/docker/certs.d',
      minikube: '.minikube/files/etc/containerd/certs.d',
    }[client]
    return hostsFault('bypass', 'warn', hosts, `write [host."${cache}"] before its other hosts`, {
      client,
      when: `of ${client}`,
      ...(client === 'docker' && { options: engine }),
      files: {
        'etc/containerd/config.toml': configPath,
        [`${root}/quay.io/hosts.toml`]: hosts.replace('registry-1.docker', 'quay'),
        [`${root}/docker.io/hosts.toml`]: hosts.replace(cache, 'https://mirror.gcr.io'),
      },
    })
  }),
  {
    fault: 'containerd.swallowed',
    state: 'fail',
    mend: 'Move config_path below [plugins."io.containerd.grpc.v1.cri".registry] in ',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': configPath.replace(
        '  config',
        '[plugins."io.containerd.grpc.v1.cri".registry.headers]\n  config',
      ),
      [containerdHosts]: header + hosts,
    },
  },
  {
    fault: 'containerd.swallowed',
    when: 'of the version',
    state: 'fail',
    mend: 'Move version above the first table',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': `${configPath.replace('version = 2\n', '')}  version = 2\n`,
      [containerdHosts]: header + hosts,
    },
  },
  {
    fault: 'containerd.old-mirrors',
    state: 'fail',
    mend: 'Remove registry.mirrors from /etc/containerd/config.toml',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': `${configPath}  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\n    endpoint = ["${cache}"]\n`,
    },
  },
  {
    fault: 'containerd.old-mirrors',
    when: 'alone',
    state: 'warn',
    mend: 'Remove registry.mirrors',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': `version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\n  endpoint = ["${cache}"]\n`,
    },
  },
  {
    fault: 'containerd.config-path',
    state: 'fail',
    mend: 'Write config_path = "/etc/containerd/certs.d"',
    client: 'containerd',
    files: { 'etc/containerd/config.toml': 'version = 2\n', [containerdHosts]: header + hosts },
  },
  {
    fault: 'containerd.two-folders',
    state: 'warn',
    mend: 'Write config_path = "/etc/containerd/certs.d"',
    client: 'containerd',
    options: { clientVersion: '2.1.9' },
    files: {
      'etc/containerd/config.toml': configPath.replace('certs.d"', 'certs.d:/etc/docker/certs.d"'),
      [containerdHosts]: header + hosts,
    },
  },
  {
    fault: 'containerd.section',
    state: 'warn',
    mend: 'Move these keys to the section that containerd reads',
    client: 'containerd',
    options: { clientVersion: '1.7.24' },
    files: {
      'etc/containerd/config.toml':
        'version = 2\n[plugins."io.containerd.cri.v1.images".registry]\n  config_path = "/etc/containerd/certs.d"\n',
    },
  },
  {
    fault: 'containerd.default',
    state: 'warn',
    mend: 'Move ',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': configPath,
      'etc/containerd/certs.d/_default/hosts.toml': `[host."${cache}"]\n  capabilities = ["pull", "resolve"]\n`,
      'etc/docker/certs.d/registry.corp/hosts.toml':
        '[host."https://registry.corp"]\n  capabilities = ["pull", "resolve"]\n',
    },
  },
  {
    fault: 'docker.syntax',
    state: 'fail',
    mend: 'dockerd --validate --config-file ',
    client: 'docker',
    files: { 'etc/docker/daemon.json': '{"debug": true,,}\n' },
  },
  {
    fault: 'docker.syntax',
    when: 'of an unknown key',
    state: 'warn',
    mend: 'dockerd --validate --config-file ',
    client: 'docker',
    files: { 'etc/docker/daemon.json': '{"registry-mirror": ["http://127.0.0.1:5055"]}\n' },
  },
  {
    fault: 'docker.syntax',
    when: 'of a key that stands there twice',
    state: 'warn',
    mend: 'Remove one of the two',
    client: 'docker',
    files: { 'etc/docker/daemon.json': '{"debug": true, "debug": false}\n' },
  },
  {
    fault: 'docker.url',
    state: 'fail',
    mend: 'Write the mirror as scheme, host and port only',
    client: 'docker',
    options: oldEngine,
    files: { 'etc/docker/daemon.json': `{"registry-mirrors": ["${cache}/docker.io"]}\n` },
  },
  {
    fault: 'docker.url',
    when: 'without a scheme',
    state: 'fail',
    mend: 'Write the mirror as scheme, host and port only',
    client: 'docker',
    options: oldEngine,
    files: { 'etc/docker/daemon.json': '{"registry-mirrors": ["127.0.0.1:5055"]}\n' },
  },
  {
    fault: 'docker.order',
    state: 'warn',
    mend: `Put ${cache} first`,
    client: 'docker',
    options: oldEngine,
    files: { 'etc/docker/daemon.json': `{"registry-mirrors": ["https://mirror.gcr.io", "${cache}"]}\n` },
  },
  {
    fault: 'docker.ignored-insecure',
    state: 'warn',
    mend: '[host."http://registry.corp:5000"]',
    client: 'docker',
    options: engine,
    files: {
      'etc/docker/daemon.json': '{"insecure-registries": ["registry.corp:5000"]}\n',
      'etc/docker/certs.d/_default/hosts.toml': `[host."${cache}"]\n  capabilities = ["pull", "resolve"]\n`,
    },
  },
  {
    fault: 'docker.ignored-folder',
    state: 'fail',
    mend: 'mirror configure docker --scope system',
    client: 'docker',
    options: oldEngine,
    files: { 'etc/docker/certs.d/docker.io/hosts.toml': hosts },
  },
  {
    fault: 'podman.syntax',
    state: 'fail',
    mend: 'Correct ',
    client: 'podman',
    options: { scope: 'system' },
    files: { [userTable]: '[[registry]\n' },
  },
  {
    fault: 'podman.old-style',
    state: 'warn',
    mend: 'Write unqualified-search-registries',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { 'etc/containers/registries.conf': '[registries.search]\nregistries = ["docker.io"]\n' },
  },
  {
    fault: 'podman.old-style',
    when: 'in podman 6',
    state: 'fail',
    mend: 'Write unqualified-search-registries',
    client: 'podman',
    options: { scope: 'system', clientVersion: '6.0' },
    files: { 'etc/containers/registries.conf': '[registries.search]\nregistries = ["docker.io"]\n' },
  },
  {
    fault: 'podman.old-style',
    when: 'that is mixed with the second version',
    state: 'fail',
    mend: 'Remove the [registries.…] lists',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { 'etc/containers/registries.conf': `[registries.search]\nregistries = ["docker.io"]\n${table('')}` },
  },
  {
    fault: 'podman.overridden',
    when: 'by a longer prefix',
    state: 'warn',
    mend: 'location = "127.0.0.1:5055/docker.io/library"',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: {
      [ownTable]: header + table(`${mirrorTable}insecure = true\n`),
      [userTable]: '[[registry]]\nprefix = "docker.io/library"\nlocation = "docker.io/library"\n',
    },
  },
  {
    fault: 'podman.location',
    state: 'fail',
    mend: 'Write 127.0.0.1:5055/docker.io at ',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: table(mirrorTable.replace('"127', '"http://127')) },
  },
  {
    fault: 'podman.location',
    when: 'without the registry',
    state: 'fail',
    mend: 'Write location = "127.0.0.1:5055/quay.io"',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: {
      [userTable]:
        '[[registry]]\nlocation = "quay.io"\n[[registry.mirror]]\nlocation = "127.0.0.1:5055"\ninsecure = true\n',
    },
  },
  {
    fault: 'podman.hub',
    state: 'warn',
    mend: 'Write prefix = "docker.io"',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: `[[registry]]\nlocation = "index.docker.io"\n${mirrorTable}insecure = true\n` },
  },
  {
    fault: 'podman.hidden',
    state: 'fail',
    mend: 'mirror configure podman --scope user',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: {
      '.config/containers/registries.conf': 'unqualified-search-registries = ["docker.io"]\n',
      [ownTable]: header + table(`${mirrorTable}insecure = true\n`),
    },
  },
  {
    fault: 'podman.overridden',
    state: 'fail',
    mend: 'mirror configure podman --scope system',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [ownTable]: header + table(`${mirrorTable}insecure = true\n`), [userTable]: table('') },
  },
  {
    fault: 'podman.swallowed',
    state: 'warn',
    mend: 'Move unqualified-search-registries above',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: table('unqualified-search-registries = ["docker.io"]\n') },
  },
  {
    fault: 'podman.insecure',
    state: 'fail',
    mend: 'Add insecure = true',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: table(mirrorTable) },
  },
  {
    fault: 'podman.blocked',
    state: 'warn',
    mend: 'Remove blocked = true',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: table('blocked = true\n') },
  },
  {
    fault: 'podman.digest-only',
    state: 'warn',
    mend: 'Remove pull-from-mirror',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { [userTable]: table(`${mirrorTable}insecure = true\npull-from-mirror = "digest-only"\n`) },
  },
  {
    fault: 'podman.drop-in',
    state: 'warn',
    mend: 'mv ',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { 'etc/containers/registries.conf.d/mirror': table('') },
  },
  {
    fault: 'podman.drop-in',
    when: 'with a name that a shell splits',
    state: 'warn',
    mend: "/my mirror' '",
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: { 'etc/containers/registries.conf.d/my mirror': table('') },
  },
  {
    fault: 'buildkit.syntax',
    state: 'fail',
    mend: 'Correct ',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: '[registry\n' },
  },
  {
    fault: 'buildkit.http',
    state: 'fail',
    mend: 'Write http = true in the table [registry."mirror:5055"]',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: '[registry."docker.io"]\n  mirrors = ["mirror:5055"]\n  http = true\n' },
  },
  {
    fault: 'buildkit.http',
    when: 'of a mirror with a path',
    state: 'fail',
    mend: 'Write http = true in the table [registry."mirror:5055"]',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: '[registry."docker.io"]\n  mirrors = ["mirror:5055/hub"]\n  http = true\n' },
  },
  {
    fault: 'buildkit.syntax',
    when: 'of mirrors that are no list',
    state: 'fail',
    mend: 'Write mirrors = ["HOST:PORT"]',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: '[registry."docker.io"]\n  mirrors = "mirror:5055"\n' },
  },
  {
    fault: 'buildkit.hub',
    state: 'warn',
    mend: 'Write [registry."docker.io"]',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: '[registry."index.docker.io"]\n  mirrors = ["127.0.0.1:5055"]\n' },
  },
  {
    fault: 'buildkit.scheme',
    state: 'fail',
    mend: 'Write the mirror without its scheme',
    client: 'buildkit',
    options: { scope: 'system' },
    files: { [buildkitd]: `[registry."docker.io"]\n  mirrors = ["${cache}"]\n` },
  },
  {
    fault: 'k3s.syntax',
    state: 'fail',
    mend: 'Correct ',
    client: 'k3s',
    files: { [registriesYaml]: 'mirrors: [\n' },
  },
  {
    fault: 'k3s.scheme',
    state: 'fail',
    mend: 'Write "http://127.0.0.1:5055"',
    client: 'k3s',
    files: { [registriesYaml]: 'mirrors:\n  docker.io:\n    endpoint: ["127.0.0.1:5055"]\n' },
  },
  {
    fault: 'k3s.syntax',
    when: 'of an endpoint that is no list',
    state: 'fail',
    mend: `Write endpoint: ["${cache}"]`,
    client: 'k3s',
    files: { [registriesYaml]: `mirrors:\n  docker.io:\n    endpoint: ${cache}\n` },
  },
  {
    fault: 'k3s.hub',
    state: 'warn',
    mend: 'Write docker.io instead of https://registry-1.docker.io',
    client: 'k3s',
    files: { [registriesYaml]: `mirrors:\n  https://registry-1.docker.io:\n    endpoint: ["${cache}"]\n` },
  },
  {
    fault: 'k3s.rewrite',
    state: 'warn',
    mend: 'Remove rewrite of docker.io',
    client: 'k3s',
    files: {
      [registriesYaml]: `mirrors:\n  docker.io:\n    endpoint: ["${cache}"]\n    rewrite: {"^(.*)$": "hub/$1"}\n`,
    },
  },
  {
    fault: 'k3s.bypass',
    state: 'warn',
    mend: `Add "${cache}" as the first endpoint of quay.io`,
    client: 'k3s',
    files: {
      [registriesYaml]: `mirrors:\n  "*":\n    endpoint: ["${cache}"]\n  quay.io:\n    endpoint: ["https://quay.corp"]\n`,
    },
  },
  {
    fault: 'k3s.duplicate',
    state: 'fail',
    mend: 'mirror configure k3s --scope system',
    client: 'k3s',
    files: { [registriesYaml]: `${header}mirrors:\n  docker.io:\n    endpoint: ["${cache}", "${cache}/"]\n` },
  },
  {
    fault: 'k3s.template',
    state: 'fail',
    mend: '{{ template "base" . }}',
    client: 'k3s',
    files: { [`${templates}/config.toml.tmpl`]: 'version = 2\n' },
  },
  {
    fault: 'k3s.scheme',
    when: 'of k3d',
    state: 'fail',
    mend: 'Write "http://mirror:5055"',
    client: 'k3d',
    files: {
      '.local/state/mirror/k3d/k3s-default/registries.yaml': 'mirrors:\n  "*":\n    endpoint: ["mirror:5055"]\n',
    },
  },
  {
    fault: 'hosts.capability',
    when: 'in the files of minikube',
    state: 'fail',
    mend: 'Remove "fetch"',
    client: 'minikube',
    files: { '.minikube/files/etc/containerd/certs.d/_default/hosts.toml': hosts.replace('"pull"', '"fetch"') },
  },
  {
    fault: 'hosts.syntax',
    when: 'in the folder that kind nodes mount',
    state: 'fail',
    mend: 'mirror configure kind',
    client: 'kind',
    files: { '.local/state/mirror/kind/certs.d/_default/hosts.toml': `${header}${hosts}[host."${cache}"]\n` },
  },
]

async function machineAt(root: string, files: Readonly<Record<string, string>>): Promise<Machine> {
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true })
    await writeFile(join(root, path), text)
  }
  return {
    platform: 'linux',
    env: {},
    home: root,
    root,
    detached: true,
    cwd: root,
    stateDir: join(root, 'state'),
    runCommand: async () => undefined,
  }
}

const noOptions = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

/** Returns the findings about the first target of a client, as `mirror doctor` reports them. */
async function inspect(machine: Machine, client: ClientName, options: Partial<ClientOptions>) {
  const [target] = await (await getAdapter(client)).findTargets(machine, { ...noOptions, ...options })
  const scope = target!.details['scope']
  const command = `mirror configure ${client}${scope === undefined ? '' : ` --scope ${scope}`}`
  return toOutcomes((await inspectTarget(target!, cache)).findings ?? [], command)
}

async function toOutcomes(findings: readonly Finding[], command = 'mirror configure') {
  const outcomes = await Promise.all(findings.map((one) => toOutcome(one, 'it', { command, isOwn: false })))
  return outcomes.map(({ id, state, fix, advice }) => ({ id, state, mend: fix?.command ?? advice }))
}

describe('mirror doctor finds', () => {
  test.for(faults.map((fault) => ({ when: '', ...fault })))(
    '$fault in the files of $client $when',
    async ({ client, files, options = {}, fault, state, mend }) => {
      const machine = await machineAt(await temporaryHome(), files)
      const outcomes = await inspect(machine, client, options)
      expect(outcomes).toContainEqual({ id: `clients.${fault}`, state, mend: expect.stringContaining(mend) })
      expect(outcomes.filter(({ id }) => id !== `clients.${fault}`)).toEqual([])
    },
  )
})

const dockerTarget: DockerTarget = {
  daemonJson: '/etc/docker/daemon.json',
  certsFolder: '/etc/docker/certs.d',
  version: '26.1.5',
  imageStore: 'classic',
  mirrors: [],
  insecure: [],
  flags: {},
}
const layout: PodmanTarget = {
  files: { system: ['/etc/containers'], user: '/home/me/.config/containers', named: undefined, modern: false },
  scope: 'user',
}
const snapshot = (files: Readonly<Record<string, string>>) =>
  new FilesSnapshot(new Map(Object.entries(files).map(([path, text]) => [path, new TextEncoder().encode(text)])))
const daemonJson = (content: object) => snapshot({ '/etc/docker/daemon.json': JSON.stringify(content) })
const node = { name: 'dev-control-plane', configPaths: ['/etc/containerd/certs.d'], mounts: [], version: '1.7.24' }
const nodeFiles = (text: string | undefined, config = configPath) =>
  snapshot({
    '/dev-control-plane/etc/containerd/config.toml': config,
    ...(text !== undefined && { '/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml': text }),
  })
const inspectNode = (files: FilesSnapshot, one: Partial<typeof node> = {}) =>
  inspectKindNodes(cache, { cluster: 'dev', nodes: [{ ...node, ...one }] }, files)
const ownHosts = `${header}[host."${cache}"]\n  capabilities = ["pull", "resolve"]\n`
const clusterFile = (patch: string) =>
  inspectKindFiles(
    { folder: '/state/kind/certs.d', file: 'kind.yaml' },
    snapshot({
      'kind.yaml': `kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\ncontainerdConfigPatches:\n- |-\n${patch}`,
    }),
  )

/** Lists the faults that need a running daemon, a node, or a variable. */
const others: readonly [
  title: string,
  fault: string,
  state: string,
  mend: string,
  findings: () => readonly Finding[],
][] = [
  [
    'a broken config.toml of containerd',
    'containerd.syntax',
    'fail',
    'Correct /etc/containerd/config.toml',
    () =>
      inspectContainerdConfig({
        main: { name: '/etc/containerd/config.toml', text: 'version =\n' },
        imports: [],
        dump: undefined,
        version: '2.1.9',
        hosts: undefined,
        restart: 'systemctl restart containerd',
        isWritten: false,
      }),
  ],
  [
    'a flag of dockerd that daemon.json repeats',
    'docker.flags',
    'fail',
    'Move the value of --registry-mirror',
    () =>
      inspectDocker(
        cache,
        { ...dockerTarget, flags: { 'registry-mirror': [cache] } },
        daemonJson({ 'registry-mirrors': [cache] }),
      ),
  ],
  [
    'a plain mirror that an old dockerd takes for HTTPS',
    'docker.insecure',
    'fail',
    'mirror configure',
    () =>
      inspectDocker(
        'http://172.17.0.1:5055',
        dockerTarget,
        daemonJson({ 'registry-mirrors': ['http://172.17.0.1:5055'] }),
      ),
  ],
  [
    'a mirror that dockerd keeps after its key is gone',
    'docker.empty-key',
    'warn',
    'sudo systemctl restart docker',
    () => inspectDocker(cache, { ...dockerTarget, mirrors: [`${cache}/`] }, daemonJson({})),
  ],
  [
    'a variable that names other files for podman',
    'podman.variable',
    'warn',
    'unset CONTAINERS_REGISTRIES_CONF',
    () =>
      inspectPodman(
        cache,
        { ...layout, files: { ...layout.files, modern: true, named: '/tmp/mine.conf' } },
        snapshot({}),
      ),
  ],
  [
    'a kind node without the files of the mirror',
    'kind.hosts',
    'fail',
    'mirror configure',
    () => inspectNode(nodeFiles(undefined)),
  ],
  [
    'a kind node with another address',
    'kind.hosts',
    'fail',
    'mirror configure',
    () => inspectNode(nodeFiles(ownHosts.replace('5055', '6055'))),
  ],
  [
    'a kind node without config_path',
    'containerd.config-path',
    'fail',
    'mirror configure',
    () => inspectNode(nodeFiles(ownHosts, 'version = 2\n'), { configPaths: [] }),
  ],
  [
    'a kind node with registry.mirrors',
    'containerd.old-mirrors',
    'fail',
    'Remove registry.mirrors',
    () =>
      inspectNode(
        nodeFiles(
          ownHosts,
          `${configPath}[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["${cache}"]\n`,
        ),
      ),
  ],
  [
    'a kind node with a repeated table',
    'hosts.syntax',
    'fail',
    'mirror configure',
    () => inspectNode(nodeFiles(`${ownHosts}[host."${cache}"]\n`)),
  ],
  [
    'a kind node with an unknown capability',
    'hosts.capability',
    'fail',
    'mirror configure',
    () => inspectNode(nodeFiles(ownHosts.replace('"resolve"', '"resolve", "referrers"'))),
  ],
  [
    'a folder that kind cannot mount',
    'kind.mount',
    'fail',
    'MIRROR_HOME',
    () => inspectKindFiles({ folder: '/home/a:b/kind/certs.d', file: undefined }, snapshot({})),
  ],
  [
    'a patch that kind skips',
    'kind.patch',
    'fail',
    'Remove the line "version = 3"',
    () =>
      clusterFile(
        '  version = 3\n  [plugins."io.containerd.cri.v1.images".registry]\n    config_path = "/etc/containerd/certs.d"\n',
      ),
  ],
  [
    'a patch that breaks config_path',
    'kind.patch',
    'fail',
    'Remove registry.mirrors',
    () =>
      clusterFile(
        '  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\n    endpoint = ["http://mirror:5055"]\n',
      ),
  ],
  [
    'a JSON patch that breaks config_path',
    'kind.patch',
    'fail',
    'Remove this patch',
    () =>
      inspectKindFiles(
        { folder: '/state/kind/certs.d', file: 'kind.yaml' },
        snapshot({
          'kind.yaml': `kind: Cluster\ncontainerdConfigPatchesJSON6902:\n- |-\n  [{"op": "add", "path": "/plugins/io.containerd.grpc.v1.cri/registry/mirrors", "value": {}}]\n`,
        }),
      ),
  ],
  [
    'a kind node with a hosts.toml of its own that leaves out the mirror',
    'hosts.bypass',
    'warn',
    'Remove /dev-control-plane/etc/containerd/certs.d/docker.io/hosts.toml',
    () =>
      inspectNode(
        snapshot({
          '/dev-control-plane/etc/containerd/config.toml': configPath,
          '/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml': ownHosts,
          '/dev-control-plane/etc/containerd/certs.d/docker.io/hosts.toml': hosts.replace(
            cache,
            'https://mirror.gcr.io',
          ),
        }),
      ),
  ],
  [
    'a plain mirror that BuildKit takes for HTTPS',
    'buildkit.http',
    'fail',
    'Write http = true in the table [registry."172.17.0.1:5055"]',
    () =>
      inspectBuildkit(
        'http://172.17.0.1:5055',
        '/b.toml',
        snapshot({ '/b.toml': '[registry."docker.io"]\n  mirrors = ["172.17.0.1:5055"]\n' }),
      ),
  ],
  [
    'a patch that containerd 1 ignores',
    'kind.patch',
    'warn',
    'io.containerd.grpc.v1.cri',
    () =>
      clusterFile('  [plugins."io.containerd.cri.v1.images".registry]\n    config_path = "/etc/containerd/certs.d"\n'),
  ],
  [
    'a map of kaniko with docker.io',
    'kaniko.hub',
    'fail',
    'mirror configure kaniko',
    () => inspectKanikoVariables({ KANIKO_REGISTRY_MAP: 'docker.io=127.0.0.1:5055/upstream/docker.io' }),
  ],
  [
    'a map of kaniko with a registry in its path',
    'kaniko.path',
    'fail',
    'mirror configure kaniko',
    () => inspectKanikoVariables({ KANIKO_REGISTRY_MAP: 'gcr.io=127.0.0.1:5055/gcr.io' }),
  ],
  [
    'a mirror of kaniko with a scheme',
    'kaniko.path',
    'fail',
    'mirror configure kaniko',
    () => inspectKanikoVariables({ KANIKO_REGISTRY_MIRROR: cache }),
  ],
]

describe('mirror doctor finds, with what a daemon, a node or the environment tells', () => {
  test.for(others)('%s', async ([, fault, state, mend, findings]) => {
    expect(await toOutcomes(findings())).toEqual([
      { id: `clients.${fault}`, state, mend: expect.stringContaining(mend) },
    ])
  })
})

test.each([
  [
    '{"registry-mirrors": "http://127.0.0.1:5055"}',
    'In /etc/docker/daemon.json, "registry-mirrors" is not a list of strings, which dockerd requires. dockerd keeps its old settings, and does not start again.',
  ],
  [
    '',
    '/etc/docker/daemon.json is not valid JSON: line 1, column 1: the file is empty. dockerd keeps its old settings, and does not start again.',
  ],
])('a daemon.json with %j is described without what a change would do', (text, saw) => {
  expect(inspectDocker(cache, dockerTarget, snapshot({ '/etc/docker/daemon.json': text }))).toMatchObject([{ saw }])
})

test('an engine that cannot test its daemon.json is not asked to', () => {
  const mends = ['{', '{"no-such-key": true}'].flatMap((text) =>
    inspectDocker(cache, { ...dockerTarget, version: '20.10.24' }, snapshot({ '/etc/docker/daemon.json': text })),
  )
  expect(mends).toHaveLength(2)
  expect(JSON.stringify(mends)).not.toContain('--validate')
})

test("containerd's own default of two folders is a fault only with files of the mirror", () => {
  const dump = configPath.replace('certs.d"', 'certs.d:/etc/docker/certs.d"')
  const inspectDefault = (hosts: string | undefined) =>
    inspectContainerdConfig({
      main: { name: '/etc/containerd/config.toml', text: 'version = 2\n' },
      imports: [],
      dump,
      version: '2.1.9',
      hosts,
      restart: 'systemctl restart containerd',
      isWritten: false,
    })
  expect(inspectDefault(undefined)).toEqual([])
  expect(inspectDefault('/etc/containerd/certs.d')).toMatchObject([{ fault: 'containerd.two-folders' }])
})

describe('the command `mirror configure` of a finding', () => {
  const mirror = {
    cache,
    registry: undefined,
    registries: ['docker.io', 'quay.io'],
    defaultUpstream: 'docker.io',
    fallback: true,
  }
  const rehearse = (target: ConfigTarget, files: FilesSnapshot): Rehearsal => {
    try {
      const plan = target.plan(mirror, files)
      return { refusal: undefined, plan, after: files.with(plan.changes) }
    } catch (error) {
      if (error instanceof MirrorError) return { refusal: error }
      throw error
    }
  }
  const command = 'mirror configure podman --scope user'
  const seeded = faults.filter(({ mend }) => mend.startsWith('mirror configure'))

  test.for(seeded.map((fault) => ({ when: '', ...fault })))(
    'mends $fault of $client $when, or an advice takes its place',
    async ({ client, files, options = {}, fault }) => {
      const machine = await machineAt(await temporaryHome(), files)
      const [target] = await (await getAdapter(client)).findTargets(machine, { ...noOptions, ...options })
      const before = await readFiles(target!.files, target!.inputs)
      const found = target!.inspect!(cache, before).find((one) => one.fault === fault)!
      const rehearsal = rehearse(target!, before)
      const remains = (after: FilesSnapshot) => target!.inspect!(cache, after).some((one) => one.saw === found.saw)
      const advice = explainUselessConfigure(rehearsal, { saw: found.saw, command, remains })
      if (advice === undefined) expect(rehearsal.refusal === undefined && remains(rehearsal.after)).toBe(false)
      else expect(advice).toMatch(/^[A-Z/m].*/)
    },
  )

  test.each([
    [
      'location = "hub.corp.example/hub"\n',
      'add hub.corp.example to "upstreams" in mirror.yaml. Then run: mirror up; ',
    ],
    ['location = "docker.io"\nblocked = true\n', 'is blocked in '],
  ])('is replaced where a later file of podman has %j', async (keys, advice) => {
    const later = `[[registry]]\nprefix = "docker.io"\n${keys}`
    const machine = await machineAt(await temporaryHome(), { [userTable]: later })
    const [target] = await (await getAdapter('podman')).findTargets(machine, { ...noOptions, scope: 'system' })
    const rehearsal = rehearse(target!, await readFiles(target!.files, target!.inputs))
    const saw = 'podman info lists no mirror of docker.io.'
    expect(explainUselessConfigure(rehearsal, { saw, command })).toContain(advice)
    expect(explainUselessConfigure(rehearsal, { saw: 'podman info lists no mirror of quay.io.', command })).toBe(
      undefined,
    )
    // What trace shows is read from the same files.
    const files = (await readFiles(target!.files, target!.inputs)).with(rehearsal.refusal ? [] : rehearsal.plan.changes)
    const routes = ['docker.io/library/app', 'quay.io/org/app'].map((one) => target!.findRoute!(cache, one, files))
    expect(routes.map((route) => route?.viaMirror)).toEqual([false, true])
  })

  test('is replaced where a file in its place is of the user', async () => {
    const machine = await machineAt(await temporaryHome(), { [ownTable]: table('') })
    const [target] = await (await getAdapter('podman')).findTargets(machine, { ...noOptions, scope: 'system' })
    const rehearsal = rehearse(target!, await readFiles(target!.files, target!.inputs))
    const path = join(machine.root, ownTable)
    expect(explainUselessConfigure(rehearsal, { saw: `${path} was changed since.`, path, command })).toBe(
      `Rename ${path} to another name that ends in .conf, then run: ${command}`,
    )
  })
})

test('each check of the files of clients has a case here', () => {
  const seeded = new Set([...faults.map(({ fault }) => fault), ...others.map(([, fault]) => fault)])
  const known = checks.flatMap(({ id }) => (/^clients\.[a-z0-9]+\./.test(id) ? [id.replace('clients.', '')] : []))
  expect(known.filter((fault) => !seeded.has(fault))).toEqual([])
})

/** Lists files of users that have no fault. */
const sound: readonly (Pick<Fault, 'client' | 'files' | 'options'> & { readonly title: string })[] = [
  {
    title: 'http = true for a plain registry whose mirror has its own table',
    client: 'buildkit',
    options: { scope: 'system' },
    files: {
      [buildkitd]:
        '[registry."registry.corp:5000"]\n  http = true\n  mirrors = ["mirror:5055/corp"]\n[registry."mirror:5055"]\n  http = true\n',
    },
  },
  {
    title: 'the entry of a registry for itself, which pushes need',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': configPath,
      'etc/containerd/certs.d/registry.corp.example/hosts.toml':
        '[host."https://registry.corp.example"]\n  skip_verify = true\n',
      'etc/containerd/certs.d/hub.corp.example/hosts.toml':
        'server = "https://origin.corp.example/v2"\n[host."https://origin.corp.example"]\n  skip_verify = true\n',
    },
  },
  ...['0', '.5s', '1.s', '+1m30s', '5μs'].map((timeout) => ({
    title: `the duration ${timeout} of Go`,
    client: 'containerd' as const,
    files: {
      'etc/containerd/config.toml': configPath,
      [containerdHosts]: `${hosts}  dial_timeout = "${timeout}"\n`,
    },
  })),
  ...[
    ['50-mirror.conf~', table('')],
    ['a.conf.bak', table('')],
    ['a.conf.orig', table('')],
    ['a.conf.rpmsave', table('')],
    ['a.conf.rpmnew', table('')],
    ['a.conf.dpkg-dist', table('')],
    ['a.conf.disabled', table('')],
    ['README.md', table('')],
    ['notes', 'no TOML\n'],
    ['settings', 'short-name-mode = "enforcing"\n'],
  ].map(([name, text = '']) => ({
    title: `a drop-in that is off on purpose: ${name}`,
    client: 'podman' as const,
    options: { scope: 'system', clientVersion: '5.4' } as const,
    files: { [`etc/containers/registries.conf.d/${name}`]: text },
  })),
  {
    title: 'a folder of a registry that is not mirrored, and other spellings of the mirror',
    client: 'containerd',
    files: {
      'etc/containerd/config.toml': configPath,
      'etc/containerd/certs.d/_default/hosts.toml': ownHosts,
      'etc/containerd/certs.d/registry.corp.example/hosts.toml': '[host."https://registry.corp.example"]\n',
      'etc/containerd/certs.d/docker.io/hosts.toml':
        '[host."http://localhost:5055/v2/docker.io"]\n  capabilities = ["pull", "resolve"]\n  override_path = true\n',
    },
  },
  {
    title: 'a longer prefix that is another registry, or has the mirror',
    client: 'podman',
    options: { scope: 'system', clientVersion: '5.4' },
    files: {
      [ownTable]: header + table(`${mirrorTable}insecure = true\n`),
      [userTable]: [
        '[[registry]]\nprefix = "docker.io/corp"\nlocation = "registry.corp/hub"\n',
        `[[registry]]\nlocation = "docker.io/library"\n${mirrorTable.replace('docker.io', 'docker.io/library')}insecure = true\n`,
      ].join(''),
    },
  },
  {
    title: 'entries of registries that are not mirrored',
    client: 'k3s',
    files: {
      [registriesYaml]: `mirrors:\n  "*":\n    endpoint: ["${cache}"]\n  registry.corp:5000:\n    endpoint: ["http://registry.corp:5000"]\n    rewrite: {"^(.*)$": "x/$1"}\n`,
    },
  },
  {
    title: 'the keys of daemon.json of moby 29',
    client: 'docker',
    options: oldEngine,
    files: {
      'etc/docker/daemon.json':
        '{"cdi-spec-dirs": ["/etc/cdi"], "nri-opts": {"enable": true}, "apparmor-profile": "/etc/a"}\n',
    },
  },
]

const configured: readonly [ClientName, Partial<ClientOptions>][] = [
  ['docker', engine],
  ['docker', oldEngine],
  ['podman', { scope: 'system', clientVersion: '5.4' }],
  ['podman', { scope: 'system', clientVersion: '6.0' }],
  ['podman', { scope: 'user', clientVersion: '4.3' }],
  ['containerd', { clientVersion: '1.7.24' }],
  ['containerd', { clientVersion: '2.3.1' }],
  ['kind', {}],
  ['k3s', {}],
  ['k3d', {}],
  ['minikube', {}],
  ['buildkit', { scope: 'system' }],
]

describe('mirror doctor finds nothing', () => {
  test.for(sound)('in $client: $title', async ({ client, files, options = {} }) => {
    expect(await inspect(await machineAt(await temporaryHome(), files), client, options)).toEqual([])
  })

  test.for(configured)('in what mirror configure %s writes with %o', async ([client, options]) => {
    const files = { 'etc/containerd/config.toml': configPath }
    const machine = await machineAt(await temporaryHome(), client === 'containerd' ? files : {})
    const [target] = await (await getAdapter(client)).findTargets(machine, { ...noOptions, ...options })
    const before = await readFiles(target!.files, target!.inputs)
    const registries = ['docker.io', 'quay.io']
    const mirror = {
      cache,
      registry: 'http://127.0.0.1:5001',
      registries,
      defaultUpstream: 'docker.io',
      fallback: true,
    }
    const { changes } = target!.plan(mirror, before)
    expect(changes).not.toEqual([])
    expect(target!.inspect!(cache, before.with(changes))).toEqual([])
  })
})

test('the config_path of a kind node is read from its file, so that a plan which writes it counts as the mend', () => {
  const found = inspectNode(nodeFiles(ownHosts), { configPaths: [] }).map(({ fault }) => fault)
  expect(found).not.toContain('containerd.config-path')
})
