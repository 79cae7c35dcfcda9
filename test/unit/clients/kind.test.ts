import { posix } from 'node:path'
import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import { planKind, stripKind } from '../../../src/clients/kind/cluster-file.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'

const mirror: MirrorForClient = {
  cache: 'http://172.18.0.1:5055',
  registry: undefined,
  registries: ['docker.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const file = '/home/me/kind.yaml'
const target = { folder: '/state/kind/certs.d', file, join: (...parts: string[]) => posix.join(...parts) }
const header = 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n'

function files(text: string): FilesSnapshot {
  return new FilesSnapshot(new Map([[file, Buffer.from(text)]]))
}

function merged(text: string): string {
  return planKind(mirror, target, files(text)).changes.find(({ path }) => path === file)!.after!
}

describe('a cluster file of kind', () => {
  test("that was changed since loses only mirror's settings", () => {
    const before = `${header}nodes:\n- role: control-plane\n- role: worker # two\n`
    const changed = merged(before)
      .replace('# two', '# 2')
      .replace('role: control-plane\n', 'role: control-plane\n  image: x\n')
    expect(stripKind(mirror, target, files(changed))).toEqual([
      {
        path: file,
        before: changed,
        after: `${header}nodes:\n- role: control-plane\n  image: x\n- role: worker # 2\n`,
      },
    ])
  })

  test("keeps mounts of folders next to mirror's", () => {
    const before = `${header}nodes:\n- role: control-plane\n  extraMounts:\n  - hostPath: /state/kind/certs.d-mine\n    containerPath: /x\n`
    expect(stripKind(mirror, target, files(merged(before)))[0]?.after).toBe(before)
  })

  test("keeps the user's patch when mirror's is removed", () => {
    const before = `${header}containerdConfigPatches:\n- a = 1\nnodes: [{role: worker}]\n`
    expect(stripKind(mirror, target, files(`${merged(before)}# more\n`))[0]?.after).toBe(`${before}# more\n`)
  })

  test('with the mounts and another patch for them gets nothing twice', () => {
    const once = merged(header)
    expect(planKind(mirror, target, files(once)).changes.filter(({ path }) => path === file)).toEqual([])
  })

  test('on stdout mounts every folder that is written', () => {
    const { output, changes } = planKind(
      { ...mirror, registry: 'http://172.18.0.1:5001' },
      { ...target, file: undefined },
      new FilesSnapshot(new Map()),
    )
    const cluster = parse(output!) as { nodes: { extraMounts: { hostPath: string }[] }[] }
    expect(cluster.nodes[0]!.extraMounts.map(({ hostPath }) => `${hostPath}/hosts.toml`)).toEqual(
      changes.map(({ path }) => path),
    )
  })

  test('without fallback has the mirror as the server of each registry', () => {
    const { changes } = planKind({ ...mirror, fallback: false }, target, files(header))
    expect(changes[0]?.after).toContain('server = "http://172.18.0.1:5055"')
  })

  const patched = (key: string, patch: string) => `${header}${key}:\n- |-\n${patch.replaceAll(/^/gm, '  ')}\n`
  const isOwnPath = (path: string) =>
    `- |-\n  # added by mirror\n  [plugins."io.containerd.grpc.v1.cri".registry]\n    config_path = "${path}"\n`

  test.each([
    ['of containerd 2', '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/containerd/certs.d"'],
    ['of containerd 2, dotted', 'plugins.\'io.containerd.cri.v1.images\'.registry.config_path = "/srv/hosts"'],
    [
      'of containerd 2, inline',
      'plugins = {"io.containerd.cri.v1.images" = {registry = {config_path = "/srv/hosts"}}}',
    ],
    ['of version 3', 'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/srv/hosts"'],
    ['of version 1', '[plugins.cri.registry]\nconfig_path = "/srv/hosts"'],
    [
      'of version 1, by its number',
      'version = 1\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/srv/hosts"',
    ],
  ])(
    "with a config_path that some versions of containerd ignore gets mirror's patch for the same folder: %s",
    (_, patch) => {
      const before = patched('containerdConfigPatches', patch)
      const plan = planKind(mirror, target, files(before))
      const after = plan.changes.find(({ path }) => path === file)!.after!
      const folder = /"(\/[^"]*)"/.exec(patch)![1]!
      expect(after).toContain(isOwnPath(folder))
      expect(after).toContain(`containerPath: ${folder}/_default`)
      expect(plan.notes.join('\n')).toMatch(/Some versions of containerd ignore|may have no effect/)
      // Checks that a second run changes nothing, and that the undo removes the entries of mirror.
      expect(planKind(mirror, target, files(after)).changes.filter(({ path }) => path === file)).toEqual([])
      const withoutNodes = (text: string | undefined) => text?.replace(/nodes:[\s\S]*/, '')
      expect(withoutNodes(stripKind(mirror, target, files(after))[0]?.after)).toBe(before)
    },
  )

  test.each([
    ['[{"op":"add","path":"/plugins/io.containerd.grpc.v1.cri/registry/config_path","value":"/srv/hosts"}]', false],
    ['[{"op":"add","path":"/plugins/io.containerd.grpc.v1.cri/registry","value":{"config_path":"/srv/hosts"}}]', false],
    [
      '[{"op":"add","path":"/plugins/io.containerd.cri.v1.images/registry","value":{"config_path":"/srv/hosts"}}]',
      true,
    ],
  ])('with the JSON patch %s mounts the folders below its config_path', (patch, needsOurs) => {
    const after = merged(patched('containerdConfigPatchesJSON6902', patch))
    expect(after).toContain('containerPath: /srv/hosts/_default')
    expect(after.includes('added by mirror')).toBe(needsOurs)
  })

  test.each([
    ['containerdConfigPatchesJSON6902', '[{"op":"remove","path":"/plugins/io.containerd.grpc.v1.cri/registry"}]'],
    ['containerdConfigPatchesJSON6902', '[{"op":"replace","path":"/plugins/io.containerd.grpc.v1.cri","value":{}}]'],
    [
      'containerdConfigPatches',
      '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/a"\n[plugins."io.containerd.cri.v1.images".registry.configs."x".auth]\nusername = "u"',
    ],
  ])("whose patches conflict with mirror's is refused: %s %s", (key, patch) => {
    expect(() => merged(patched(key, patch))).toThrow(expect.objectContaining({ exit: 2 }))
  })

  test("whose own patch empties config_path gets mirror's patch after it", () => {
    const patch = '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = ""'
    expect(merged(patched('containerdConfigPatches', patch))).toContain(isOwnPath('/etc/containerd/certs.d'))
  })
})
