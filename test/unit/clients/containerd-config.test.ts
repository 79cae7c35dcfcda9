import { describe, expect, test } from 'vitest'
import { getImports, readContainerdConfig } from '../../../src/clients/containerd/config-toml.ts'

const name = '/etc/containerd/config.toml'
const registry = (plugin: string, path: string) => `[plugins."${plugin}".registry]\nconfig_path = "${path}"\n`
const second = 'io.containerd.grpc.v1.cri'
const third = 'io.containerd.cri.v1.images'

describe("a containerd's configuration", () => {
  test.each([
    ['version = 2\n[grpc]\naddress = "/run/a.sock"\n', '/run/a.sock'],
    ['version = 3\n[grpc]\naddress = "/run/a.sock"\n', '/run/a.sock'],
    ['version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/run/b.sock"\n', '/run/b.sock'],
    [
      "version = 4\n[plugins]\n  [plugins.'io.containerd.server.v1.grpc']\n    address = '/run/b.sock'\n",
      '/run/b.sock',
    ],
    [
      'version = 3\n[grpc]\naddress = "/run/a.sock"\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/run/b.sock"\n',
      '/run/b.sock',
    ],
    ['version = 4\n[grpc]\naddress = "/run/a.sock"\n', undefined],
    ['version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = ""\n', undefined],
    ['version = 2\n', undefined],
  ])('names its socket by its format version: %j', (text, address) => {
    expect(readContainerdConfig({ name, text }, undefined).address).toBe(address)
  })

  test.each([
    [
      '1.7.28',
      `version = 2\n${registry(third, '/a')}`,
      `${name} has no effect in containerd 1.7.28: in a file with version = 2 containerd reads [plugins."${second}".registry]`,
    ],
    [undefined, `version = 2\n${registry(third, '/a')}`, 'may have no effect'],
    ['2.1.4', `version = 3\n${registry(second, '/a')}`, `containerd reads [plugins."${third}".registry]`],
    ['1.6.38', registry(second, '/a'), 'with version = 1, or none, containerd reads [plugins.cri.registry]'],
    ['2.4.0', `version = 4\n${registry(second, '/a')}`, 'with version = 4'],
  ])('of containerd %s has a note on settings that it does not read: %j', (containerd, text, said) => {
    const config = readContainerdConfig({ name, text }, containerd)
    expect(config).toMatchObject({ configPaths: [], ineffectivePaths: ['/a'] })
    expect(config.notes.join()).toContain(said)
  })

  test('takes the settings of imported files, of which the last one wins', () => {
    const text = `version = 2\nimports = ["conf.d/*.toml", "/opt/x.toml"]\n${registry(second, '/a')}`
    expect(getImports({ name, text })).toEqual(['/etc/containerd/conf.d/*.toml', '/opt/x.toml'])
    const imports = [{ name: '/opt/x.toml', text: `version = 2\n${registry(second, '/b')}` }]
    expect(readContainerdConfig({ name, text }, '1.7.28', imports)).toMatchObject({
      configPaths: ['/b'],
      file: '/opt/x.toml',
      fileVersion: 2,
    })
  })

  // Quotes `containerd config dump` of these versions.
  test.each([
    ['version = 2\n', registry(second, '/b'), '1.7.28', ['/b']],
    ['version = 2\n', registry(second, '/b'), '2.1.4', ['/b']],
    ['version = 2\n', `version = 3\n${registry(third, '/b')}`, '2.1.4', ['/b']],
    [`version = 2\n${registry(second, '/a')}`, 'version = 3\n', '2.1.4', []],
    [`version = 2\n${registry(second, '/a')}`, 'version = 3\n', '2.3.0', ['/a']],
    ['version = 3\n', registry(third, '/b'), '2.1.4', ['/b']],
    ['version = 3\n', registry('cri', '/b'), '2.1.4', []],
    ['version = 3\n', registry('cri', '/b'), '2.3.0', ['/b']],
    ['version = 3\n', registry(third, '/b'), undefined, ['/b']],
  ])('%j with an import %j makes containerd %s read the folders %j', (text, imported, containerd, configPaths) => {
    const imports = [{ name: '/opt/x.toml', text: imported }]
    expect(readContainerdConfig({ name, text }, containerd, imports).configPaths).toEqual(configPaths)
  })

  test('of containerd 1.x loses a path to an import with other settings of the same plugin', () => {
    const main = { name, text: `version = 2\n${registry(second, '/a')}` }
    const imports = [{ name: '/opt/x.toml', text: `version = 2\n[plugins."${second}"]\nsandbox_image = "x"\n` }]
    expect(readContainerdConfig(main, '1.7.28', imports)).toMatchObject({ configPaths: [], file: '/opt/x.toml' })
    expect(readContainerdConfig(main, '2.1.4', imports)).toMatchObject({ configPaths: ['/a'], file: name })
  })

  test.each([
    ['disabled_plugins = ["cri"]', true],
    ['version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]', true],
    ['version = 3\ndisabled_plugins = ["io.containerd.cri.v1.images"]', true],
    ['version = 3\ndisabled_plugins = ["io.containerd.snapshotter.v1.btrfs"]', false],
  ])('has the CRI plugin disabled or not: %j', (text, criOff) => {
    expect(readContainerdConfig({ name, text }, undefined).criOff).toBe(criOff)
  })
})
