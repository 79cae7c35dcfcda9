import { describe, expect, test } from 'vitest'
import { readRegistrySection, setConfigPath } from '../../../src/clients/containerd/config-toml.ts'
import type { KindNode } from '../../../src/clients/kind/nodes.ts'
import { planKindCluster, stripKindCluster } from '../../../src/clients/kind/running-cluster.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'
import { exitCode } from '../../../src/lib/errors.ts'

const mirror: MirrorForClient = {
  cache: 'http://172.18.0.1:5055',
  registry: 'http://172.18.0.1:5001',
  registries: ['docker.io', 'gcr.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const hosting = '/kubernetes/kube-public/local-registry-hosting.yaml'
const config = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\n  snapshotter = "overlayfs"\n'
const node = (more: Partial<KindNode> = {}): KindNode => ({
  name: 'dev-control-plane',
  configPaths: [],
  mounts: [],
  ...more,
})

function files(texts: Readonly<Record<string, string>>): FilesSnapshot {
  return new FilesSnapshot(new Map(Object.entries(texts).map(([path, text]) => [path, Buffer.from(text)])))
}

function plan(nodes: readonly KindNode[], texts: Readonly<Record<string, string>>) {
  return planKindCluster(mirror, { cluster: 'dev', nodes, hosting }, files(texts))
}

describe('a running cluster of kind', () => {
  const fresh = plan([node()], { '/dev-control-plane/etc/containerd/config.toml': config })

  test('gets folders, a config_path, and the ConfigMap of the registry', () => {
    expect(fresh.changes.map(({ path }) => path)).toEqual([
      '/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml',
      '/dev-control-plane/etc/containerd/certs.d/localhost_5001_/hosts.toml',
      '/dev-control-plane/etc/containerd/config.toml',
      hosting,
    ])
    expect(fresh.changes[2]?.after).toBe(
      `${config}[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n`,
    )
    expect(fresh.changes[3]?.after).toContain('hostFromClusterNetwork: 172.18.0.1:5001')
    expect(fresh.notes).toEqual([expect.stringContaining('restarted')])
  })

  test('is not changed when nothing is missing', () => {
    const now = Object.fromEntries(fresh.changes.map(({ path, after }) => [path, after ?? '']))
    expect(plan([node({ configPaths: ['/etc/containerd/certs.d'] })], now)).toEqual({
      changes: [],
      notes: [],
      todo: [],
    })
  })

  test('keeps the config.toml of a node that has a config_path', () => {
    const { changes } = plan([node({ configPaths: ['/srv/hosts', '/etc/docker/certs.d'] })], {})
    expect(changes.map(({ path }) => path)).toEqual([
      '/dev-control-plane/srv/hosts/_default/hosts.toml',
      '/dev-control-plane/srv/hosts/localhost_5001_/hosts.toml',
      hosting,
    ])
  })

  test('gets no file in a folder that a node mounts from this machine', () => {
    const mounts = ['/etc/containerd/certs.d/_default', '/etc/containerd/certs.d/localhost_5001_']
    const { changes, notes } = plan([node({ configPaths: ['/etc/containerd/certs.d'], mounts })], {})
    expect(changes.map(({ path }) => path)).toEqual([hosting])
    expect(notes).toHaveLength(2)
  })

  test('accepts a binary certificate in a folder', () => {
    const der = '/dev-control-plane/etc/containerd/certs.d/quay.io/ca.crt'
    const snapshot = new FilesSnapshot(new Map([[der, Uint8Array.of(0x30, 0x82, 0xff, 0xfe)]]))
    const nodes = [node({ configPaths: ['/etc/containerd/certs.d'] })]
    const { changes, notes } = planKindCluster(mirror, { cluster: 'dev', nodes, hosting: undefined }, snapshot)
    expect(changes.map(({ path }) => path)).not.toContain(der)
    expect(notes.join()).toContain('quay.io')
  })

  test('keeps its own registries', () => {
    const own = {
      '/dev-control-plane/etc/containerd/certs.d/localhost:5001/hosts.toml': '[host."http://kind-registry:5000"]\n',
      '/dev-control-plane/etc/containerd/certs.d/quay.io/hosts.toml': '[host."https://mirror.corp.example"]\n',
      [hosting]: 'data:\n  localRegistryHosting.v1: |\n    host: "localhost:5000"\n',
    }
    const { changes, notes } = plan([node({ configPaths: ['/etc/containerd/certs.d'] })], own)
    expect(changes.map(({ path }) => path)).toEqual(['/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml'])
    expect(notes.join('\n')).toMatch(/hosts\.toml of quay\.io[\s\S]*registry localhost:5001[\s\S]*another registry/)
  })

  test.each([
    [
      'mirrors in config.toml',
      {
        '/dev-control-plane/etc/containerd/config.toml': `${config}[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["http://m"]\n`,
      },
    ],
    [
      'its own hosts.toml for all registries',
      { '/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml': 'server = "http://m"\n' },
    ],
  ])('is refused with %s', (_, texts) => {
    expect(() => plan([node()], texts)).toThrow(expect.objectContaining({ exit: exitCode.usage }))
  })

  test('whose kubectl does not answer leaves a command to the user', () => {
    const { todo } = planKindCluster(mirror, { cluster: 'dev', nodes: [], hosting: undefined }, files({}))
    expect(todo).toEqual([expect.stringMatching(/kubectl apply[\s\S]*name: local-registry-hosting/)])
  })

  test.each([
    ['2.2.0', true],
    ['2.1.4', false],
    ['1.7.28', false],
    [undefined, false],
  ])('with containerd %s names referrers in hosts.toml: %s', (version, isNamed) => {
    const { changes } = plan([node({ version, configPaths: ['/etc/containerd/certs.d'] })], {})
    expect(changes[0]!.after!.includes('"referrers"')).toBe(isNamed)
  })

  test("loses only mirror's files in an undo", () => {
    const now = Object.fromEntries(fresh.changes.map(({ path, after }) => [path, `${after ?? ''}# mine\n`]))
    const target = { cluster: 'dev', nodes: [node()], hosting }
    expect(stripKindCluster(mirror, target, files(now)).map(({ path, after }) => [path, after])).toEqual([
      ['/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml', undefined],
      ['/dev-control-plane/etc/containerd/certs.d/localhost_5001_/hosts.toml', undefined],
      [hosting, undefined],
    ])
  })
})

describe('the registry section of a config.toml', () => {
  const [one, two, three] = ['cri', '"io.containerd.grpc.v1.cri"', "'io.containerd.cri.v1.images'"].map(
    (plugin) => `[plugins.${plugin}.registry]\nconfig_path = "/${plugin.replaceAll(/\W/g, '').slice(-6)}"\n`,
  ) as [string, string, string]
  const all = one + two + three

  // Lists the section that applies, by the versions of the format and of containerd.
  test.each([
    ['', '1.7.28', '/cri'],
    ['', '2.1.4', '/images'],
    ['version = 1\n', '2.2.0', '/images'],
    ['', '2.3.0', '/cri'],
    ['', undefined, '/cri'],
    ['version = 1\n', '1.6.38', '/cri'],
    ['version = 2\n', '1.6.38', '/cv1cri'],
    ['version = 2\n', '2.0.2', '/cv1cri'],
    ['version = 2\n', '2.3.4', '/cv1cri'],
    ['version = 2\n', undefined, '/cv1cri'],
    ['version = 3\n', '2.0.2', '/images'],
    ['version = 3\n', '2.2.5', '/images'],
    ['version = 3\n', '2.3.0', '/cv1cri'],
    ['version = 3\n', undefined, '/images'],
    ['version = 4\n', '2.3.0', '/images'],
    ['version = 4\n', undefined, '/images'],
  ])('with the header %j in containerd %s is the one with the path %s', (version, containerd, path) => {
    const { configPaths, ineffective } = readRegistrySection('c', version + all, { containerd })
    expect(configPaths).toEqual([path])
    expect(ineffective).toHaveLength(2)
  })

  test.each([
    ['version = 2\n', '1.7.28', []],
    ['version = 2\n', undefined, []],
    ['version = 2\n', '2.1.4', ['/images']],
    ['', '1.7.28', []],
    ['', '2.1.4', ['/images']],
    ['version = 3\n', undefined, ['/images']],
  ])(
    'with the header %j in containerd %s and only the newest plugin has the paths %j',
    (version, containerd, configPaths) => {
      expect(readRegistrySection('c', version + three, { containerd }).configPaths).toEqual(configPaths)
    },
  )

  test.each([
    ['', [], undefined],
    ['[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = ""\n', [], undefined],
    ["version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a:/b'\n", ['/a', '/b'], undefined],
    ['version = 2\nplugins."io.containerd.grpc.v1.cri".registry.config_path = "/a"\n', ['/a'], undefined],
    ['version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {registry = {config_path = "/a"}}}\n', ['/a'], undefined],
    ['[plugins."io.containerd.grpc.v1.cri".registry.mirrors]\n', [], undefined],
    ['[plugins."io.containerd.grpc.v1.cri".registry.mirrors.x]\nendpoint = []\n', [], 'registry.mirrors'],
    ['[plugins."io.containerd.grpc.v1.cri".registry.configs.x.auth]\nusername = "u"\n', [], undefined],
  ])('of %j has the paths %j and the deprecated key %s', (text, configPaths, oldKey) => {
    expect(readRegistrySection('c', text)).toMatchObject({ configPaths, oldKey })
  })

  test.each([
    ['an empty one', '', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/c"\n'],
    ['one without a version', 'root = "/r"\n', 'root = "/r"\n[plugins.cri.registry]\n  config_path = "/c"\n'],
    [
      'one of version 3',
      'version = 3',
      'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\n  config_path = "/c"\n',
    ],
    [
      'one with a section',
      'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry] \nx = 1 # one\n[y]\n',
      'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry] \n  config_path = "/c"\nx = 1 # one\n[y]\n',
    ],
    [
      'one with inline tables',
      'version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {registry = {x = 1} } } # mine\n',
      'version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {registry = {x = 1, config_path = "/c"} } } # mine\n',
    ],
    [
      'one with dotted keys',
      'version = 2\r\nplugins."io.containerd.grpc.v1.cri".registry.x = 1\r\nroot = "/r"\r\n',
      'version = 2\r\nplugins."io.containerd.grpc.v1.cri".registry.x = 1\r\nplugins."io.containerd.grpc.v1.cri".registry.config_path = "/c"\r\nroot = "/r"\r\n',
    ],
    [
      'one that has an empty path, in literal quotes and with a comment',
      "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '' # none\n",
      'version = 3\n[plugins.\'io.containerd.cri.v1.images\'.registry]\n  config_path = "/c" # none\n',
    ],
    [
      'one with a dotted key in its plugin',
      "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n  registry.x = 1\n",
      'version = 2\n[plugins.\'io.containerd.grpc.v1.cri\']\n  registry.x = 1\n  registry.config_path = "/c"\n',
    ],
    [
      'one with CRLF, tabs and no final newline',
      'version = 2\r\n\t[plugins."io.containerd.grpc.v1.cri".registry]\r\n\t\tx = [\r\n"a",\r\n]',
      'version = 2\r\n\t[plugins."io.containerd.grpc.v1.cri".registry]\r\n\t  config_path = "/c"\r\n\t\tx = [\r\n"a",\r\n]',
    ],
  ])('gets a config_path in %s', (_, before, after) => {
    expect(setConfigPath('c', before, '/c')).toBe(after)
  })
})
