import { describe, expect, test } from 'vitest'
import { createPaint } from '../../../src/cli/paint.ts'
import { renderDiff } from '../../../src/cli/render-diff.ts'

const paint = createPaint(false)
const hosts = (registry: string, server = registry) => ({
  path: `/certs.d/${registry}/hosts.toml`,
  before: undefined,
  after: `server = "https://${server}"\n`,
})

describe('a difference', () => {
  test('of many files that are alike shows one, and the paths of the others', async () => {
    const daemonJson = { path: '/daemon.json', before: '{}\n', after: '{"a": 1}\n' }
    const changes = [
      daemonJson,
      hosts('docker.io', 'registry-1.docker.io'),
      ...['a.io', 'b.io', 'c.io'].map((name) => hosts(name)),
    ]
    expect(await renderDiff(changes, paint)).toBe(`--- /daemon.json
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
And the same in 2 more, each with the name of its own folder:
+ /certs.d/b.io/hosts.toml
+ /certs.d/c.io/hosts.toml
`)
  })

  test('shows each file that differs in more, comes or goes apart, or is changed', async () => {
    const gone = { path: '/certs.d/d.io/hosts.toml', before: 'server = "https://d.io"\n', after: undefined }
    const changed = ['e.io', 'f.io', 'g.io'].map((name) => ({ ...hosts(name), before: 'old\n' }))
    const shown = await renderDiff([hosts('a.io'), hosts('b.io'), hosts('c.io', 'x.io'), gone, ...changed], paint)
    expect(shown.match(/^@@/gm)).toHaveLength(7)
    expect(shown).not.toContain('more')
  })
})
