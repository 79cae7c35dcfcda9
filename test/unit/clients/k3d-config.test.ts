import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import { parseK3dClusterFile, planK3d, stripK3d } from '../../../src/clients/k3s/k3d.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'

const path = '/home/me/k3d.yaml'
const mirror = {
  cache: 'http://172.20.0.1:5055',
  registry: 'http://172.20.0.1:5001',
  registries: ['docker.io', 'quay.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const target = { cluster: 'dev', path, caPath: '/state/k3d/dev/ca/mirror-ca.crt', hosting: undefined }
const head = 'apiVersion: k3d.io/v1alpha5\nkind: Simple\nmetadata:\n  name: dev # mine\n'
const filesOf = (text: string) => new FilesSnapshot(new Map([[path, Buffer.from(text)]]))
const plan = (text: string, more: object = {}) => planK3d({ ...mirror, ...more }, target, filesOf(text))
const merged = (text: string) => plan(text).changes.find((change) => change.path === path)?.after ?? text
const registriesIn = (text: string) =>
  parse((parse(text) as { registries: { config: string } }).registries.config) as {
    mirrors: Record<string, { endpoint: string[] }>
  }

const own =
  '    # mine\n    mirrors:\n      "docker.io": # hub\n        endpoint:\n        - https://hub.corp.example\n\n      corp.example:\n        endpoint: ["https://corp.example"]\n'

describe('a cluster file of k3d', () => {
  test.each(['""', '|', '|\n\n'])('with an empty embedded text (config: %s) gets a registries.yaml', (empty) => {
    const after = merged(`${head}registries:\n  config: ${empty}\nservers: 1\n`)
    expect(registriesIn(after).mirrors['*']!.endpoint).toEqual([mirror.cache])
    expect(after).toContain('servers: 1\n')
  })

  test.each([
    ['without registries', head],
    ['with a registry of its own', `${head}registries:\n  create:\n    name: reg\nservers: 1\n`],
    ['with an empty config', `${head}registries:\n  config: # none yet\n  use: [reg]\n`],
    ['with a block', `${head}registries:\n  config: |\n${own}servers: 1 # one\n`],
    ['with a block at its end', `${head}registries:\n  config: |\n${own}`],
    ['with a block without a last line end', `${head}registries:\n  config: |-\n${own.trimEnd()}`],
    [
      'with a block of another indent',
      `${head}registries:\n    config: |+ # keep\n${own.replaceAll(/^ {4}/gm, '          ')}\n\nservers: 1\n`,
    ],
    [
      'with a text in quotes',
      `${head}registries: {config: "mirrors:\\n  docker.io:\\n    endpoint: [https://hub.corp.example]\\n"}\n`,
    ],
    ['as JSON', '{"apiVersion": "k3d.io/v1alpha5", "kind": "Simple", "servers": 1}\n'],
  ])('%s gets the mirror in its embedded registries.yaml, and no other byte changes', (_, text) => {
    for (const end of ['\n', '\r\n']) {
      const before = text.replaceAll('\n', end)
      const after = merged(before)
      const { mirrors } = registriesIn(after)
      expect(mirrors['*']!.endpoint[0]).toBe(mirror.cache)
      expect(mirrors['localhost:5001']!.endpoint).toEqual([mirror.registry])
      if (text.includes('hub.corp'))
        expect(mirrors['docker.io']!.endpoint).toEqual([mirror.cache, 'https://hub.corp.example'])
      expect(after).not.toMatch(/^"?mirrors/m)
      // Checks that all lines stay, in their order.
      const lines = after.split(end)
      let at = -1
      for (const line of text.includes('"mirrors') || text.startsWith('{') || text.includes('none yet')
        ? []
        : before.split(end))
        expect((at = lines.indexOf(line, at + 1)), line).toBeGreaterThan(-1)
      if (end === '\r\n') expect(after).not.toMatch(/[^\r]\n/)
      expect(plan(after).changes).toEqual([])
      const stripped = stripK3d(mirror, target, filesOf(after)).find((change) => change.path === path)!.after!
      if (text.includes('hub.corp')) expect(parse(stripped)).toEqual(parse(before))
      else expect(stripped).not.toContain('5055')
    }
  })

  test('is an argument of the printed command', () => {
    expect(plan(head).output).toBe(`k3d cluster create dev --config ${path}\n`)
  })

  test('has the name of its cluster and network', () => {
    expect(parseK3dClusterFile(path, `${head}network: corp\n`)).toEqual({ name: 'dev', network: 'corp' })
    expect(parseK3dClusterFile(path, 'apiVersion: k3d.io/v1alpha2\nkind: Simple\nname: old\n')?.name).toBe('old')
    expect(parseK3dClusterFile(path, 'mirrors: {}\n')).toBeUndefined()
  })

  test.each([
    ['names another file', `${head}registries:\n  config: ./registries.yaml\n`, 'from another file, ./registries.yaml'],
    [
      'has a folded text',
      `${head}registries:\n  config: >\n    mirrors:\n      a.example:\n        endpoint: []\n`,
      'cannot be changed',
    ],
    ['has no text there', `${head}registries:\n  config: [1]\n`, 'expected a string'],
    ['is of another kind', head.replace('Simple', 'Cluster'), 'kind: Simple'],
    ['has two documents', `${head}---\n${head}`, 'a second document begins here'],
    [
      'has no registries.yaml in it',
      `${head}registries:\n  config: |\n    services:\n      web: {}\n`,
      'looks like a Compose file',
    ],
  ])('that %s is refused', (_, text, why) => {
    expect(() => plan(text)).toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining(why) as string }),
    )
  })
})
