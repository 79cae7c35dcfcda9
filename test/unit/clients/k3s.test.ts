import { posix } from 'node:path'
import { describe, expect, test } from 'vitest'
import { planK3d } from '../../../src/clients/k3s/k3d.ts'
import { planRegistries, describeTemplates, stripRegistries } from '../../../src/clients/k3s/k3s.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'

const mirror: MirrorForClient = {
  cache: 'http://127.0.0.1:5055',
  registry: 'http://127.0.0.1:5001',
  registries: ['docker.io', 'quay.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const path = '/etc/rancher/k3s/registries.yaml'
const ca = { path: '/etc/rancher/k3s/mirror-ca.crt', name: '/etc/rancher/k3s/mirror-ca.crt' }

function files(text: string | undefined): FilesSnapshot {
  return new FilesSnapshot(new Map(text === undefined ? [] : [[path, Buffer.from(text)]]))
}

function planned(text: string | undefined, more: Partial<MirrorForClient> = {}): string {
  return planRegistries({ ...mirror, ...more }, path, ca, files(text)).changes[0]!.after!
}

describe('a registries.yaml', () => {
  test('that only mirror wrote is replaced when the mirror moves', () => {
    const moved = planned(planned(undefined), { cache: 'http://10.0.0.1:6055', registry: undefined })
    expect(moved).toBe(planned(undefined, { cache: 'http://10.0.0.1:6055', registry: undefined }))
  })

  test("that was changed since loses only mirror's entries", () => {
    const before = 'mirrors:\n  quay.io:\n    endpoint:\n    - https://mirror.corp.example\n'
    const changed = `${planned(before)}configs: {}\n`
    expect(stripRegistries(mirror, path, ca, files(changed))).toEqual([
      { path, before: changed, after: `${before}configs: {}\n` },
    ])
  })

  test("that mirror wrote keeps the user's comments", () => {
    const remarked = `${planned(undefined)}# done by me\n`
    expect(planned(remarked, { registry: 'http://127.0.0.1:6001' })).toContain('# done by me\n')
    const [stripped] = stripRegistries(mirror, path, ca, files(remarked))
    expect(planned(stripped!.after)).toBe(`# done by me\n${planned(undefined)}`)
  })

  test('that mirror wrote with other line ends is replaced, and not extended', () => {
    expect(planned(planned(undefined).replaceAll('\n', '\r\n'))).toBe(planned(undefined))
  })

  test("that mirror wrote with a CA is removed, and the user's settings next to the CA stay", () => {
    const trusting = { ...mirror, cache: 'https://10.0.0.1:5055', registry: 'https://10.0.0.1:5001', ca: 'PEM\n' }
    const plan = planRegistries(trusting, path, ca, files(undefined))
    const written = new FilesSnapshot(new Map(plan.changes.map((change) => [change.path, Buffer.from(change.after!)])))
    expect(planRegistries(trusting, path, ca, written).changes).toEqual([])
    expect(stripRegistries(trusting, path, ca, written).map((change) => [change.path, change.after])).toEqual([
      [path, undefined],
      [ca.path, undefined],
    ])
    const own = 'configs:\n  10.0.0.1:5055:\n    auth:\n      username: me\n'
    const changed = planned(own, trusting)
    expect(changed).toContain('ca_file: /etc/rancher/k3s/mirror-ca.crt')
    expect(stripRegistries(trusting, path, ca, files(changed))).toEqual([{ path, before: changed, after: own }])
    expect(planned(planned(undefined, trusting))).toBe(planned(undefined))
  })

  test('with another CA for the mirror keeps it, with a note', () => {
    const own = 'configs:\n  10.0.0.1:5055:\n    tls:\n      ca_file: /mine.crt\n'
    const plan = planRegistries({ ...mirror, cache: 'https://10.0.0.1:5055', ca: 'PEM\n' }, path, ca, files(own))
    expect(plan.notes).toEqual([expect.stringContaining('"/mine.crt"')])
    expect(plan.changes[0]!.after).toContain('ca_file: /mine.crt')
  })

  test('that only mirror wrote is removed', () => {
    const written = planned(undefined)
    expect(stripRegistries(mirror, path, ca, files(written))).toEqual([{ path, before: written, after: undefined }])
  })
})

describe('k3d', () => {
  const hosting = '/kubernetes/kube-public/local-registry-hosting.yaml'

  test('prints the command that creates a cluster, and announces the registry to its tools', () => {
    const plan = planK3d(
      { ...mirror, fallback: false },
      { cluster: 'dev', path, caPath: ca.path, hosting },
      files(undefined),
    )
    expect(plan.output).toBe(
      `k3d cluster create dev --registry-config ${path} --k3s-arg '--disable-default-registry-endpoint@server:*;agent:*'\n`,
    )
    expect(plan.changes.map((change) => change.path)).toEqual([path, hosting])
  })

  test('mounts the CA into its nodes', () => {
    const { output, changes } = planK3d(
      { ...mirror, cache: 'https://10.0.0.1:5055', ca: 'PEM\n' },
      { cluster: 'dev', path, caPath: '/home/me/k3d/ca/mirror-ca.crt', hosting },
      files(undefined),
    )
    expect(output).toContain("--volume '/home/me/k3d/ca:/etc/rancher/k3s/mirror-ca@server:*;agent:*'")
    expect(changes.map((change) => change.path)).toContain('/home/me/k3d/ca/mirror-ca.crt')
  })

  test('quotes the words of its command for the shell', () => {
    const spaced = {
      cluster: 'dev',
      path: '/home/a b/registries.yaml',
      caPath: '/home/a b/ca/mirror-ca.crt',
      hosting: undefined,
    }
    const { output } = planK3d(mirror, spaced, new FilesSnapshot(new Map()))
    expect(output).toBe("k3d cluster create dev --registry-config '/home/a b/registries.yaml'\n")
  })

  test('keeps the registry that a cluster already announces', () => {
    const own = new FilesSnapshot(new Map([[hosting, Buffer.from('data: {}\n')]]))
    const { changes, notes } = planK3d(mirror, { cluster: 'dev', path, caPath: ca.path, hosting }, own)
    expect(changes.map((change) => change.path)).toEqual([path])
    expect(notes).toContainEqual(expect.stringContaining('another registry'))
  })
})

describe('the note about a k3s template', () => {
  const own = '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/x"\n'
  test.each([
    ['config.toml.tmpl', '{{ template "base" . }}\n[plugins.x]\n', false],
    ['config.toml.tmpl', `version = 2\n${own}`, false],
    ['config.toml.tmpl', 'version = 2\n', true],
    ['config-v3.toml.tmpl', `version = 3\n${own}`, true],
    ['config-v3.toml.tmpl', `version = 3\n${own.replace('grpc.v1.cri', 'cri.v1.images')}`, false],
  ])('%s with the text %j is given: %s', (name, text, isSaid) => {
    const notes = describeTemplates('/t', new FilesSnapshot(new Map([[`/t/${name}`, Buffer.from(text)]])), posix.join)
    expect(notes.length > 0).toBe(isSaid)
    if (isSaid) expect(notes[0]).toContain(`/t/${name} replaces`)
  })
})
