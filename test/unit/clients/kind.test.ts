import { posix } from 'node:path'
import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import type { MirrorForClient } from '../../../src/clients/client-config.ts'
import { FilesNow } from '../../../src/clients/files-now.ts'
import { planKind, stripKind } from '../../../src/clients/kind.ts'

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

function files(text: string): FilesNow {
  return new FilesNow(new Map([[file, Buffer.from(text)]]))
}

function merged(text: string): string {
  return planKind(mirror, target, files(text)).changes.find(({ path }) => path === file)!.after!
}

describe('a cluster file', () => {
  test('that was changed since loses no more than what is ours', () => {
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

  test('keeps mounts of folders beside ours', () => {
    const before = `${header}nodes:\n- role: control-plane\n  extraMounts:\n  - hostPath: /state/kind/certs.d-mine\n    containerPath: /x\n`
    expect(stripKind(mirror, target, files(merged(before)))[0]?.after).toBe(before)
  })

  test('keeps a patch of its own beside ours when ours goes', () => {
    const before = `${header}containerdConfigPatches:\n- a = 1\nnodes: [{role: worker}]\n`
    expect(stripKind(mirror, target, files(`${merged(before)}# more\n`))[0]?.after).toBe(`${before}# more\n`)
  })

  test('of nodes that are mounted already by another patch gets nothing twice', () => {
    const once = merged(header)
    expect(planKind(mirror, target, files(once)).changes.filter(({ path }) => path === file)).toEqual([])
  })

  test('that is printed mounts every folder that is written', () => {
    const { output, changes } = planKind(
      { ...mirror, registry: 'http://172.18.0.1:5001' },
      { ...target, file: undefined },
      new FilesNow(new Map()),
    )
    const cluster = parse(output!) as { nodes: { extraMounts: { hostPath: string }[] }[] }
    expect(cluster.nodes[0]!.extraMounts.map(({ hostPath }) => `${hostPath}/hosts.toml`)).toEqual(
      changes.map(({ path }) => path),
    )
  })

  test('without a way to the origin names the mirror as the registry itself', () => {
    const { changes } = planKind({ ...mirror, fallback: false }, target, files(header))
    expect(changes[0]?.after).toContain('server = "http://172.18.0.1:5055"')
  })
})
