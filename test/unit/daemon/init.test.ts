import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { describeUpstreamProblem, renderConfig, writeConfig } from '../../../src/daemon/init.ts'
import { refreshSchema, writeSchema } from '../../../src/daemon/schema-file.ts'
import { defaultConfig } from '../../../src/config/config.ts'
import { parseConfig } from '../../../src/config/parse.ts'

const template = fileURLToPath(new URL('../../../templates/mirror.yaml', import.meta.url))
const choices = { cachePort: 5055, maxSize: '20GiB', upstreams: [] as string[] }
const render = (chosen: Partial<typeof choices> = {}) =>
  renderConfig({ choices: { ...choices, ...chosen }, configFile: '/m/mirror.yaml', template, homedir: '/home/me' })
const parse = (text: string) => parseConfig({ text, path: '/m/mirror.yaml', label: 'mirror.yaml', homedir: '/home/me' })

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-init-'))
})
afterEach(() => rm(folder, { recursive: true }))

describe('a new mirror.yaml', () => {
  test('parses to the default configuration', async () => {
    expect(parse(await render())).toEqual({ config: defaultConfig() })
  })

  test('shows the defaults in its comments', async () => {
    const text = await render()
    // Activates all commented keys, except the example upstream and the files that are not there by default.
    const active = text
      .split('\n')
      .filter((line) => !/^ +# (?:registry\.corp|  )/.test(line) && !/htpasswd|tls:/.test(line))
      .map((line) => line.replace(/^( *)# ((?: *)[A-Za-z]+:(?: |$).*)$/, '$1$2'))
      .join('\n')
    expect(active).toContain('\n  maxAge: 168h')
    expect(active).toContain('\nregistry:\n  enabled: true')
    expect(parse(active)).toEqual({ config: defaultConfig() })
  })

  test('contains the choices', async () => {
    const parsed = parse(
      await render({ cachePort: 0, maxSize: '0', upstreams: ['registry.corp.example:5000', 'a.example'] }),
    )
    expect(parsed).toMatchObject({
      config: {
        cache: { maxSize: 0, listen: [{ host: '127.0.0.1', port: 0 }] },
        upstreams: { 'registry.corp.example:5000': {}, 'a.example': { url: 'https://a.example' } },
      },
    })
  })

  test.each([
    ['docker.io=https://harbor.corp.example/hub', { url: 'https://harbor.corp.example', prefix: 'hub' }],
    ['docker.io=harbor.corp.example:8443/a/b/', { url: 'https://harbor.corp.example:8443', prefix: 'a/b' }],
    ['index.docker.io = http://harbor.corp.example/v2/hub', { url: 'http://harbor.corp.example', prefix: 'hub' }],
    ['docker.io=https://mirror.corp.example', { url: 'https://mirror.corp.example' }],
  ])('has a registry come from a company cache: %s', async (upstream, expected) => {
    expect(parse(await render({ upstreams: [upstream] }))).toMatchObject({
      config: { upstreams: { 'docker.io': expected } },
    })
  })

  test.each([
    { upstreams: ['docker.io=https://me:secret@harbor.corp.example/hub'] },
    { upstreams: ['docker.io=https://harbor.corp.example/Hub'] },
    { upstreams: ['docker.io=://'] },
    { maxSize: 'lots' },
    { maxSize: '1GiB\nadmin: {}' },
    { upstreams: ['not a host'] },
    { upstreams: ['a": {}\n  "b'] },
  ])('is refused with exit code 2 for %j', async (chosen) => {
    await expect(render(chosen)).rejects.toMatchObject({ name: 'MirrorError', exit: 2 })
  })

  test.each([
    ['https://ghcr.io', /^Write the host alone, such as ghcr\.io, or HOST=URL for a company cache, not "https:/],
    ['not a host', /^"not a host": .*must be a registry's host name/],
    ['docker.io=ftp://x', /^"docker\.io=ftp:\/\/x": .*must be a URL/],
    ['ghcr.io', undefined],
    ['docker.io=https://cr.corp/hub', undefined],
  ])(
    'names the problem of the registry %s at its question, and no file that does not exist',
    async (given, problem) => {
      const found = describeUpstreamProblem(given, '/home/me')
      if (problem === undefined) return expect(found).toBeUndefined()
      expect(found).toMatch(problem)
      expect(found).not.toMatch(/mirror\.yaml|:\d+:\d+/)
      await expect(render({ upstreams: [given] })).rejects.toThrow(problem)
    },
  )

  test('has a schema beside it for editors, which its first line names, and replaces only its own', async () => {
    const config = join(folder, 'mirror.yaml')
    const schema = join(folder, 'mirror.schema.json')
    expect((await render()).split('\n')[0]).toBe('# yaml-language-server: $schema=./mirror.schema.json')
    await refreshSchema(config)
    await expect(stat(schema)).rejects.toThrow('ENOENT')

    expect(await writeSchema(config, { isNew: true })).toBe(schema)
    const text = await readFile(schema, 'utf8')
    expect((await stat(schema)).mode & 0o777).toBe(0o600)
    await writeFile(schema, text.replace('"title": "mirror.yaml"', '"title": "an earlier version"'))
    await refreshSchema(config)
    expect(await readFile(schema, 'utf8')).toBe(text)

    for (const own of ['{"title": "mine"}', 'not JSON', '']) {
      await writeFile(schema, own)
      await refreshSchema(config)
      expect(await writeSchema(config, { isNew: true })).toBeUndefined()
      expect(await readFile(schema, 'utf8')).toBe(own)
    }
    await rm(schema)
    await mkdir(schema)
    await refreshSchema(config)
  })

  test('has mode 0600, and replaces an existing file only with force', async () => {
    const file = join(folder, 'new', 'mirror.yaml')
    const command = 'mirror init --template compose --output c.yaml'
    await writeConfig(file, 'a', { force: false, command })
    expect((await stat(file)).mode & 0o777).toBe(0o600)
    await writeFile(file, 'mine')
    await expect(writeConfig(file, 'b', { force: false, command })).rejects.toMatchObject({
      name: 'MirrorError',
      exit: 2,
      hints: [
        'mirror init --template compose --output c.yaml --dry-run   (prints a new one)',
        'mirror init --template compose --output c.yaml --force   (replaces it, and keeps a copy)',
      ],
    })
    expect(await readFile(file, 'utf8')).toBe('mine')
    await writeConfig(file, 'b', { force: true, command })
    expect(await readFile(file, 'utf8')).toBe('b')
  })

  test('keeps a copy of each file that it replaces, and none of the same text', async () => {
    const file = join(folder, 'mirror.yaml')
    const write = (text: string) => writeConfig(file, text, { force: true, command: 'mirror init' })
    expect(await write('mine')).toBeUndefined()
    expect(await write('new')).toBe(`${file}.bak`)
    expect(await write('new')).toBeUndefined()
    expect(await write('newer')).toBe(`${file}.bak2`)
    expect(await readFile(`${file}.bak`, 'utf8')).toBe('mine')
    expect(await readFile(`${file}.bak2`, 'utf8')).toBe('new')
    expect((await stat(`${file}.bak`)).mode & 0o777).toBe(0o600)
  })
})
