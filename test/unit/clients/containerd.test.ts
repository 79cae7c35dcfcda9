import { parse } from 'smol-toml'
import { describe, expect, test } from 'vitest'
import { type ContainerdTarget, planContainerd, stripContainerd } from '../../../src/clients/containerd/plan.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'

const mirror: MirrorForClient = {
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io', 'quay.io', 'registry.corp.example:8443'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const locate = (path: string) => ({ name: path, path })
const target: ContainerdTarget = {
  hosts: locate('/etc/containerd/certs.d'),
  otherFolders: ['/etc/docker/certs.d'],
  configFile: locate('/etc/containerd/config.toml'),
  imports: [],
  dump: undefined,
  version: '1.7.24',
  referrers: false,
  nerdctlFile: locate('/etc/nerdctl/nerdctl.toml'),
  rootless: false,
}
const configured = {
  '/etc/containerd/config.toml':
    'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"\n',
}

function filesOf(texts: Record<string, string>): FilesSnapshot {
  return new FilesSnapshot(new Map(Object.entries(texts).map(([path, text]) => [path, Buffer.from(text)])))
}

function planned(texts: Record<string, string>, options: Partial<MirrorForClient> = {}, more: object = {}) {
  const plan = planContainerd({ ...mirror, ...options }, { ...target, ...more }, filesOf({ ...configured, ...texts }))
  const hosts = plan.changes.map(({ path, after }) => [
    path.replace('/etc/containerd/certs.d/', '').replace('/hosts.toml', ''),
    JSON.parse(JSON.stringify(parse(after!))) as object,
  ])
  return { plan, hosts: Object.fromEntries(hosts) as Record<string, object> }
}

const mirrorHosts = { 'http://127.0.0.1:5055': { capabilities: ['pull', 'resolve'] } }

describe("containerd's hosts folders", () => {
  test('are one for all registries and one for Docker Hub, which are read without a restart', () => {
    const { hosts, plan } = planned({})
    expect(hosts).toEqual({
      _default: { host: mirrorHosts },
      'docker.io': { server: 'https://registry-1.docker.io', host: mirrorHosts },
    })
    expect(plan.todo).toEqual([])
  })

  test('send pulls of pushed images to the registry instead of the cache', () => {
    const registry = 'http://127.0.0.1:5001'
    expect(planned({}, { registry }).hosts['localhost_5001_']).toEqual({
      server: registry,
      host: { [registry]: { capabilities: ['pull', 'resolve'] } },
    })
    const own = { '/etc/containerd/certs.d/localhost_5001_/hosts.toml': 'server = "http://kind-registry:5000"\n' }
    expect(planned(own, { registry }).hosts).not.toHaveProperty('localhost_5001_')
  })

  test('have the mirror as their server without fallback', () => {
    const { hosts } = planned({}, { fallback: false })
    expect(hosts['_default']).toEqual({ server: 'http://127.0.0.1:5055', host: mirrorHosts })
    expect(hosts['docker.io']).toEqual({ server: 'http://127.0.0.1:5055', host: mirrorHosts })
  })

  test('take over certificates from a folder with a colon or underscores in its name', () => {
    const { hosts } = planned({
      '/etc/containerd/certs.d/quay.io/ca.crt': '',
      '/etc/containerd/certs.d/registry.corp.example:8443/client.cert': '',
      '/etc/containerd/certs.d/registry.corp.example:8443/client.key': '',
      '/etc/containerd/certs.d/registry.corp.example:8443/lonely.cert': '',
    })
    expect(hosts['quay.io']).toEqual({ server: 'https://quay.io', ca: ['ca.crt'], host: mirrorHosts })
    expect(hosts['registry.corp.example:8443']).toEqual({
      server: 'https://registry.corp.example:8443',
      client: [['client.cert', 'client.key']],
      host: mirrorHosts,
    })
    expect(Object.keys(hosts)).toContain('_default')
  })

  test("leave a user's hosts.toml alone and note what that means", () => {
    const { hosts, plan } = planned({ '/etc/containerd/certs.d/docker.io/hosts.toml': '[host."https://hub.corp"]\n' })
    expect(Object.keys(hosts)).toEqual(['_default'])
    expect(plan.notes.join()).toContain('pulls from docker.io bypass the mirror')
  })

  test.each([
    ['certificates elsewhere', '/etc/docker/certs.d/registry.corp.example:8443/ca.crt', ['docker.io', 'quay.io']],
    [
      'a hosts.toml elsewhere',
      '/etc/docker/certs.d/corp/hosts.toml',
      ['docker.io', 'quay.io', 'registry.corp.example_8443_'],
    ],
    [
      'one for all of their own',
      '/etc/containerd/certs.d/_default/hosts.toml',
      ['docker.io', 'quay.io', 'registry.corp.example_8443_'],
    ],
  ])('are one for each registry where the user has %s', (_, path, names) => {
    const { hosts, plan } = planned({ [path]: '# mine\n' })
    expect(Object.keys(hosts)).toEqual(names)
    expect(plan.notes.join('\n')).toMatch(/A folder for all registries would hide|It no longer holds/)
  })

  test("do not take folders that mirror wrote for the user's", () => {
    const written = planned({}).plan.changes[0]!.after!
    expect(Object.keys(planned({ '/etc/docker/certs.d/quay.io/hosts.toml': written }).hosts)).toContain('_default')
  })

  test('are not changed by a second run', () => {
    const { changes } = planned({}).plan
    expect(planned(Object.fromEntries(changes.map(({ path, after }) => [path, after!]))).plan.changes).toEqual([])
  })

  test('name the capability referrers only if all their readers know it', () => {
    const registry = 'http://127.0.0.1:5001'
    for (const referrers of [true, false]) {
      const { plan } = planned({}, { registry }, { referrers })
      expect(plan.changes).toHaveLength(3)
      for (const { after } of plan.changes)
        expect(after).toContain(`capabilities = [ "pull", "resolve"${referrers ? ', "referrers"' : ''} ]`)
    }
  })

  test('are refused if the user has files for every registry', () => {
    const own = { '/etc/docker/certs.d/docker.io/ca.crt': '' }
    expect(() => planned(own, { registries: ['docker.io'] })).toThrow('No registry is left')
  })
})

describe("the instruction for containerd's config.toml", () => {
  const none = { '/etc/containerd/config.toml': 'version = 2\n' }
  const todo = (texts: Record<string, string>, more: object = {}) => planned(texts, {}, more).plan.todo.join('\n')

  test.each([
    ['version = 2', '[plugins."io.containerd.grpc.v1.cri".registry]'],
    ['version = 3', '[plugins."io.containerd.cri.v1.images".registry]'],
    ['root = "/x"', '[plugins.cri.registry]'],
  ])('has the format of a config.toml with %s', (text, section) => {
    const instructions = todo({ '/etc/containerd/config.toml': `${text}\n` })
    expect(instructions).toContain(`\n  ${section}\n    config_path = "/etc/containerd/certs.d"\n`)
    expect(instructions).not.toContain('\n  version')
  })

  test.each([
    ['1.6.20', 'version = 2', 'grpc.v1.cri'],
    ['2.1.4', 'version = 3', 'cri.v1.images'],
    [undefined, 'version = 2', 'grpc.v1.cri'],
  ])('is a whole file if there is none, by containerd version: %s', (version, format, section) => {
    const plan = planContainerd(mirror, { ...target, version }, filesOf({}))
    expect(plan.todo.join()).toContain(`\n  ${format}\n  [plugins."io.containerd.${section}".registry]`)
  })

  test('depends on containerd config dump, which may have the setting from another file', () => {
    expect(todo(none, { dump: configured['/etc/containerd/config.toml'] })).toBe('')
    expect(todo({}, { dump: 'version = 2\n' })).toContain('config_path')
  })

  test('names the imported file that counts, in its format', () => {
    const imported = '/etc/containerd/conf.d/cri.toml'
    const texts = {
      '/etc/containerd/config.toml': configured['/etc/containerd/config.toml'],
      [imported]: 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"\n',
    }
    const instructions = todo(texts, { imports: [locate(imported)] })
    expect(instructions).toContain(`put into ${imported}:\n  [plugins."io.containerd.grpc.v1.cri".registry]\n`)
    expect(todo(texts, { imports: [locate(imported)], version: '2.1.4' })).toBe('')
  })

  test('comes with a note on settings that containerd does not read', () => {
    const text =
      'version = 2\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/containerd/certs.d"\n'
    const { plan } = planned({ '/etc/containerd/config.toml': text })
    expect(plan.notes.join('\n')).toContain('has no effect in containerd 1.7.24')
    expect(plan.todo.join('\n')).toContain('[plugins."io.containerd.grpc.v1.cri".registry]')
    expect(planned({ '/etc/containerd/config.toml': text }, {}, { version: '2.1.4' }).plan.todo).toEqual([])
  })

  test('names one folder instead of several', () => {
    const text = configured['/etc/containerd/config.toml'].replace('certs.d"', 'certs.d:/etc/docker/certs.d"')
    expect(todo({ '/etc/containerd/config.toml': text })).toContain('config_path = "/etc/containerd/certs.d"\n')
    const userFiles = { '/etc/docker/certs.d/corp.example/ca.crt': 'x' }
    expect(todo({ '/etc/containerd/config.toml': text, ...userFiles })).toContain(
      'Move /etc/docker/certs.d/corp.example to /etc/containerd/certs.d, and in /etc/containerd/config.toml say:',
    )
  })

  test('is missing if no kubelet uses this containerd', () => {
    expect(todo({ '/etc/containerd/config.toml': 'disabled_plugins = ["cri"]\n' })).toBe('')
    expect(todo(none, { rootless: true })).toBe('')
  })

  test.each([
    ['registry.mirrors', 'registry.mirrors."docker.io"]\nendpoint = ["https://x"]'],
    ['registry.configs', 'registry.configs."x".tls]\nca_file = "/x"'],
  ])('is a refusal if the deprecated %s is in use', (key, text) => {
    const dump = `version = 2\n[plugins."io.containerd.grpc.v1.cri".${text}\n`
    expect(() => planned({}, {}, { dump })).toThrow(key)
    expect(() => planned({}, {}, { dump: `[plugins.cri.${text}\n` })).toThrow(key)
  })

  test('comes with one for nerdctl if nerdctl.toml does not list the folder', () => {
    const file = '/etc/nerdctl/nerdctl.toml'
    expect(todo({ [file]: 'hosts_dir = ["/x"]\n' })).toContain('add "/etc/containerd/certs.d" to hosts_dir')
    expect(todo({ [file]: 'hosts_dir = ["/x", "/etc/containerd/certs.d"]\n' })).toBe('')
  })
})

describe('removing the mirror from hosts.toml files that the user changed', () => {
  const then = { cache: mirror.cache, registry: 'http://127.0.0.1:5001' }
  const stripped = (texts: Record<string, string>) => stripContainerd(then, '/etc/containerd/certs.d', filesOf(texts))

  test('removes files without other contents and keeps what the user added', () => {
    const written = Object.fromEntries(
      planned({}, { registry: then.registry }).plan.changes.map(({ path, after }) => [path, after!]),
    )
    const hub = '/etc/containerd/certs.d/docker.io/hosts.toml'
    const added = '\n[host."https://hub.corp.example"]\n  skip_verify = true # mine\n'
    const changes = stripped({ ...written, [hub]: written[hub]! + added })
    expect(changes.find(({ path }) => path === hub)!.after).toBe(
      'server = "https://registry-1.docker.io"\n\n[host."https://hub.corp.example"]\n  skip_verify = true # mine\n',
    )
    expect(changes.filter(({ after }) => after === undefined).map(({ path }) => path)).toEqual([
      '/etc/containerd/certs.d/_default/hosts.toml',
      '/etc/containerd/certs.d/localhost_5001_/hosts.toml',
    ])
  })

  test("does not touch the user's own files", () => {
    expect(stripped({ '/etc/containerd/certs.d/quay.io/hosts.toml': '[host."http://127.0.0.1:5055"]\n' })).toEqual([])
  })
})
