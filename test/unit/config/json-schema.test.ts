import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Ajv } from 'ajv'
import { describe, expect, test } from 'vitest'
import { parse as parseYaml } from 'yaml'
import { defaultConfig, toConfigDocument } from '../../../src/config/config.ts'
import { createConfigSchema, renderConfigSchema } from '../../../src/config/json-schema.ts'
import { parseConfig } from '../../../src/config/parse.ts'
import { type Field, type JsonSchema, settings } from '../../../src/config/schema.ts'
import { findPackageRoot } from '../../../src/lib/fs.ts'

const schema = createConfigSchema()
const validate = new Ajv({ allErrors: true, allowUnionTypes: true }).compile(schema)
const load = (text: string) => parseConfig({ text, path: '/m/mirror.yaml', label: 'mirror.yaml', homedir: '/home/me' })
const isValid = (text: string) => validate(parseYaml(text, { version: '1.2' }))

/** Returns the schemas of all keys by their paths; `*` stands for the name of a registry. */
function listSchemas(of: JsonSchema, path = ''): [string, JsonSchema][] {
  const below = (key: string) => (path === '' ? key : `${path}.${key}`)
  const children: [string, JsonSchema][] = [
    ...Object.entries(of.properties ?? {}),
    ...(of.anyOf ?? []).flatMap((choice) => Object.entries(choice.properties ?? {})),
    ...(typeof of.additionalProperties === 'object' ? [['*', of.additionalProperties] as [string, JsonSchema]] : []),
  ]
  return children.flatMap(([key, value]) => [[below(key), value], ...listSchemas(value, below(key))])
}

function listKeys({ fields = {} }: Field<unknown>, path = ''): string[] {
  return Object.entries(fields).flatMap(([key, field]) => [`${path}${key}`, ...listKeys(field, `${path}${key}.`)])
}

describe('the schema of mirror.yaml', () => {
  test.each([
    ['nothing', '{}'],
    ['a section without a value', 'cache:\nupstreams:\nlog:\n'],
    ['sizes and durations', 'cache: {maxSize: 1.5 GB, minFree: 1000000, maxAge: 1h30m, tagFreshness: 0}'],
    ['timeouts', 'cache: {timeouts: {connect: 500ms, headers: 1m, idle: 1h, revalidate: 2.5s}}'],
    ['one address and several', 'cache: {listen: "127.0.0.1:0"}\nadmin: {listen: ["[::1]:5056", localhost:0]}'],
    ['words and switches', 'cache: {stale: always, offline: true, verifyReads: auto}\nlog: {level: debug}'],
    ['names', 'networks: [kind, my_net.1]\nallowedHosts: [mirror.corp.example, "::1"]'],
    ['passwords of the registry', 'registry: {networks: write, auth: {htpasswd: ./a}, deletes: false}'],
    ['an upstream without keys', 'upstreams:\n  registry.corp.example:\n  "localhost:5000": {}'],
    [
      'an upstream',
      'upstreams: {a.example: {url: "http://b.example:1/base", prefix: a/b-c, tokenHosts: [c.example:1], ca: ~/ca.pem}}',
    ],
    [
      'credentials',
      'upstreams: {a.example: {credentials: anonymous}, b.example: {credentials: {username: me, passwordEnv: P}}}',
    ],
    ['a default and TLS', 'defaultUpstream: ghcr.io\ntls: {cert: ./c, key: ./k}'],
    ['an IPv6 upstream', 'upstreams: {"[::1]:5000": {credentials: {username: me, passwordFile: ./p}}}'],
  ])('accepts %s, as the loader does', (_, text) => {
    expect(load(text)).toHaveProperty('config')
    expect(isValid(text), JSON.stringify(validate.errors)).toBe(true)
  })

  test.each([
    ['an unknown key', 'maxSize: 1GiB'],
    ['an unknown key of a section', 'cache: {tagFreshnes: 10s}'],
    ['a size without meaning', 'cache: {maxSize: lots}'],
    ['a negative size', 'cache: {maxSize: -1}'],
    ['a duration without a unit', 'cache: {tagFreshness: 10}'],
    ['a timeout of 0', 'cache: {timeouts: {connect: 0}}'],
    ['a port alone', 'cache: {listen: 5055}'],
    ['an address without a port', 'cache: {listen: [127.0.0.1]}'],
    ['an empty list of addresses', 'cache: {listen: []}'],
    ['an unknown word', 'cache: {stale: sometimes}'],
    ['a text for a switch', 'cache: {offline: maybe}'],
    ['too many layers', 'cache: {prefetch: {layers: 65}}'],
    ['a fraction', 'cache: {prefetch: {layers: 1.5}}'],
    ['a section that is a text', 'registry: "on"'],
    ['a list of maps', 'networks: [{name: kind}]'],
    ['a host with a path', 'upstreams: {"a.example/x": {}}'],
    ['an FTP URL', 'upstreams: {a.example: {url: "ftp://a.example"}}'],
    ['a URL with a password', 'upstreams: {a.example: {url: "https://me:secret@a.example"}}'],
    ['a URL with /v2', 'upstreams: {a.example: {url: "https://a.example/v2/"}}'],
    ['a prefix in upper case', 'upstreams: {a.example: {prefix: Hub}}'],
    ['an unknown key of an upstream', 'upstreams: {a.example: {mirror: x}}'],
    ['a password in the file', 'upstreams: {a.example: {credentials: {username: me, password: x}}}'],
    ['credentials without a password', 'upstreams: {a.example: {credentials: {username: me}}}'],
    [
      'two sources of a password',
      'upstreams: {a.example: {credentials: {username: me, passwordEnv: A, passwordFile: b}}}',
    ],
    ['an unknown source of credentials', 'upstreams: {a.example: {credentials: none}}'],
    ['TLS without a key', 'tls: {cert: ./c}'],
    ['no map', '- a'],
  ])('refuses %s, as the loader does', (_, text) => {
    expect(load(text)).toHaveProperty('problems')
    expect(isValid(text)).toBe(false)
  })

  test('has exactly the keys of the loader, each with a description', () => {
    const schemas = listSchemas(schema)
    const outside = schemas.map(([path]) => path).filter((path) => !path.startsWith('upstreams.'))
    expect(outside.toSorted()).toEqual(listKeys(settings).toSorted())
    for (const [path, { description }] of schemas) expect(description, path).toMatch(/\w.*\.$/)
  })

  test('has the defaults of the loader, which accepts them', () => {
    const defaults = Object.fromEntries(
      listSchemas(schema).flatMap(([path, of]) => ('default' in of ? [[path, of.default]] : [])),
    )
    expect(defaults).toMatchObject({ 'cache.maxSize': '20GiB', 'cache.maxAge': '168h', networks: ['kind'] })
    const document: Record<string, unknown> = {}
    for (const [path, value] of Object.entries(defaults)) {
      const keys = path.split('.')
      let section = document
      for (const key of keys.slice(0, -1)) section = (section[key] ??= {}) as Record<string, unknown>
      section[keys.at(-1)!] = value
    }
    expect(load(JSON.stringify(document))).toEqual({ config: defaultConfig() })
    const { upstreams: _, ...written } = toConfigDocument(defaultConfig())
    expect(Object.keys(document)).toEqual(Object.keys(written))
  })

  test('accepts the defaults, the template with all its comments, and every example of the documentation', async () => {
    expect(validate(toConfigDocument(defaultConfig())), JSON.stringify(validate.errors)).toBe(true)
    const root = findPackageRoot()
    for (const page of ['README.md', 'docs/upstreams.md', 'docs/registry.md', 'docs/tls.md', 'docs/container.md']) {
      const text = await readFile(join(root, page), 'utf8')
      const examples = [...text.matchAll(/^```yaml\n([^]*?)^```/gm)].map(([, example]) => example!)
      for (const example of examples.filter((yaml) => 'config' in load(yaml)))
        expect(isValid(example), `${page}: ${example}\n${JSON.stringify(validate.errors)}`).toBe(true)
    }
  })

  test('is in the package', async () => {
    expect(await readFile(join(findPackageRoot(), 'dist', 'mirror.schema.json'), 'utf8')).toBe(renderConfigSchema())
  })
})
