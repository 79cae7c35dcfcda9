import { describe, expect, test } from 'vitest'
import { createColors } from '../../../src/cli/terminal.ts'
import { renderDiff } from '../../../src/cli/render/configure.ts'

const colors = createColors(false)
const hosts = (registry: string, server = registry) => ({
  path: `/certs.d/${registry}/hosts.toml`,
  before: undefined,
  after: `server = "https://${server}"\n`,
})

describe('a diff', () => {
  test('of many similar files shows one, and names the others', async () => {
    const daemonJson = { path: '/daemon.json', before: '{}\n', after: '{"a": 1}\n' }
    const changes = [
      daemonJson,
      hosts('docker.io', 'registry-1.docker.io'),
      ...['a.io', 'b.io', 'c.io'].map((name) => hosts(name)),
    ]
    expect(await renderDiff(changes, colors)).toBe(`--- /daemon.json
+++ /daemon.json
@@ -1,1 +1,1 @@
-{}
+{"a": 1}
--- /dev/null
+++ /certs.d/docker.io/hosts.toml
@@ -0,0 +1,1 @@
+server = "https://registry-1.docker.io"
--- /dev/null
+++ /certs.d/a.io/hosts.toml
@@ -0,0 +1,1 @@
+server = "https://a.io"
… 2 more files like it (--diff shows all): b.io, c.io in /certs.d
`)
  })

  test('shows each file that differs in more, is added or removed, or is changed', async () => {
    const gone = { path: '/certs.d/d.io/hosts.toml', before: 'server = "https://d.io"\n', after: undefined }
    const changed = ['e.io', 'f.io', 'g.io'].map((name) => ({ ...hosts(name), before: 'old\n' }))
    const shown = await renderDiff([hosts('a.io'), hosts('b.io'), hosts('c.io', 'x.io'), gone, ...changed], colors)
    expect(shown.match(/^@@/gm)).toHaveLength(7)
    expect(shown).not.toContain('more')
  })
  test('of many similar tables in one file shows one and names the others, unless all are wanted', async () => {
    const table = (name: string, end = '') =>
      `[[registry]]\nprefix = "${name}"\n\n  [[registry.mirror]]\n  location = "127.0.0.1:5055/${name}"${end}\n\n`
    const names = ['docker.io', 'gcr.io', 'ghcr.io']
    const text = `# ours\n\n${names.map((name) => table(name)).join('')}${table('quay.io', ' # theirs')}[end]\n`
    for (const [before, after, sign] of [
      [undefined, text, '+'],
      [text, undefined, '-'],
    ] as const) {
      const change = { path: '/50-mirror.conf', before, after }
      const shown = await renderDiff([change], colors)
      expect(shown).toContain(`${sign}prefix = "docker.io"`)
      expect(shown).toContain(`\n… 2 more tables like it (--diff shows all): gcr.io, ghcr.io`)
      expect(shown).not.toContain('prefix = "gcr.io"')
      expect(shown).toContain('location = "127.0.0.1:5055/quay.io" # theirs')
      expect(shown).toContain(`${sign}[end]`)
      const whole = await renderDiff([change], colors, { whole: true })
      expect(whole.match(/prefix = /g)).toHaveLength(4)
      expect(whole).not.toContain('more')
    }
    const files = ['a.io', 'b.io', 'c.io'].map((name) => hosts(name))
    expect((await renderDiff(files, colors, { whole: true })).match(/^@@/gm)).toHaveLength(3)
  })

  test('of tables that change in a file shows what stays around them', async () => {
    const table = (name: string, port: number) => `[registry."${name}"]\n  mirrors = ["127.0.0.1:${port}"]\n`
    const text = (port: number) => ['a.io', 'b.io', 'c.io', 'd.io'].map((name) => table(name, port)).join('')
    const shown = await renderDiff([{ path: '/buildkitd.toml', before: text(1), after: text(2) }], colors)
    expect(shown.match(/^\+ {2}mirrors/gm)).toHaveLength(4)
  })
})
