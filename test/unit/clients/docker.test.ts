import { parse } from 'smol-toml'
import { describe, expect, test } from 'vitest'
import {
  parseDockerdFlags,
  getDockerForm,
  type DockerTarget,
  emptyDaemonJsonLists,
} from '../../../src/clients/docker/daemon-json.ts'
import { planDocker, stripDocker } from '../../../src/clients/docker/plan.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'

const file = '/etc/docker/daemon.json'
const folder = '/etc/docker/certs.d'

const filesOf = (files: Record<string, string>) =>
  new FilesSnapshot(new Map(Object.entries(files).map(([path, text]) => [path, Buffer.from(text)])))

const mirror = (more: Partial<MirrorForClient> = {}): MirrorForClient => ({
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io', 'gcr.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
  ...more,
})

const target = (more: Partial<DockerTarget> = {}): DockerTarget => ({
  daemonJson: file,
  certsFolder: folder,
  version: '27.5.1',
  imageStore: 'classic',
  mirrors: [],
  insecure: [],
  flags: {},
  ...more,
})

const folders = (more: Partial<DockerTarget> = {}) => target({ version: '28.5.2', imageStore: 'containerd', ...more })

const after = (plan: { changes: readonly { path: string; after: string | undefined }[] }) =>
  Object.fromEntries(plan.changes.map((change) => [change.path, change.after]))

describe('the form that a Docker engine reads', () => {
  test.each([
    ['20.10.24+dfsg1', 'classic', folder, 'mirrors'],
    ['27.5.1', 'containerd', folder, 'mirrors'],
    ['28.0.0', 'classic', folder, 'mirrors'],
    ['28.0.0', 'containerd', folder, 'folders'],
    ['v29.1', 'containerd', folder, 'folders'],
    ['28.0.0', 'containerd', undefined, 'mirrors'],
    ['28.0.0', undefined, folder, 'both'],
    ['27.0.0', undefined, folder, 'mirrors'],
    [undefined, 'containerd', folder, 'both'],
    [undefined, 'classic', folder, 'mirrors'],
    [undefined, undefined, folder, 'both'],
    ['dev', undefined, folder, 'both'],
  ] as const)(
    'for version %s with the %s image store and folders at %s is %s',
    (version, imageStore, certsFolder, form) => {
      expect(getDockerForm(target({ version, imageStore, certsFolder }))).toBe(form)
    },
  )
})

describe('the configuration of Docker', () => {
  test('uses the address of Docker Hub, and the names of other registries', () => {
    const plan = after(planDocker(mirror(), folders(), filesOf({})))
    expect(plan[`${folder}/docker.io/hosts.toml`]).toContain('server = "https://registry-1.docker.io"\n')
    expect(plan[`${folder}/gcr.io/hosts.toml`]).toContain('server = "https://gcr.io"\n')
    expect(Object.keys(plan)).toHaveLength(2)
  })

  test('is refused for a mirror whose default upstream is not Docker Hub', () => {
    const other = mirror({ defaultUpstream: 'registry.corp.example' })
    for (const imageStore of ['classic', undefined] as const)
      expect(() => planDocker(other, target({ version: '28.0.0', imageStore }), filesOf({}))).toThrow(
        expect.objectContaining({ exit: 2, message: expect.stringContaining('registry.corp.example') }),
      )
    expect(planDocker(other, folders(), filesOf({})).changes).toHaveLength(2)
  })

  test.each([
    ['http://127.0.0.1:5055', '27.5.1', undefined],
    ['http://127.1.2.3:5055', undefined, undefined],
    ['http://localhost:5055', '20.10.0', undefined],
    ['http://[::1]:5055', '20.10.0', undefined],
    ['https://10.0.0.7:5055', '20.10.0', undefined],
    ['http://10.0.0.7:5055', '28.0.0', undefined],
    ['http://10.0.0.7:5055', '27.5.1', ['10.0.0.7:5055']],
    ['http://host.docker.internal:5055', undefined, ['host.docker.internal:5055']],
  ])('for a mirror at %s and version %s has the insecure registries %j', (cache, version, insecure) => {
    const text = after(planDocker(mirror({ cache }), target({ version }), filesOf({})))[file]!
    const settings = { 'registry-mirrors': [cache], ...(insecure && { 'insecure-registries': insecure }) }
    expect(JSON.parse(text)).toEqual(settings)
  })

  test('does not repeat a flag of dockerd', () => {
    const flags = parseDockerdFlags([
      '-H',
      'fd://',
      '--registry-mirror',
      'https://a.example',
      '--registry-mirror=https://b.example',
    ])
    expect(() => planDocker(mirror(), target({ flags }), filesOf({}))).toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining('--registry-mirror=https://b.example') }),
    )
    expect(planDocker(mirror(), folders({ flags }), filesOf({})).changes).toHaveLength(2)
    const insecure = target({ flags: parseDockerdFlags(['--insecure-registry=10.0.0.0/8']) })
    expect(() => planDocker(mirror({ cache: 'http://10.0.0.7:5055' }), insecure, filesOf({}))).toThrow(
      /insecure-registry/,
    )
    expect(planDocker(mirror(), insecure, filesOf({})).changes).toHaveLength(1)
  })

  test('does not mirror registries that any setting calls insecure', () => {
    const registries = [
      'a.example',
      'b.example:5000',
      'c.example',
      '10.1.2.3:5000',
      '127.0.0.1:5000',
      'localhost:5000',
      '[::1]:5000',
      '9.9.9.9',
    ]
    const insecure = ['a.example', '10.0.0.0/8', '2001:db8::/32', '10.0.0.0/99']
    const flags = { 'insecure-registry': ['b.example:5000'] }
    const files = filesOf({ [file]: '{"insecure-registries": ["http://C.example/"]}' })
    const plan = planDocker(mirror({ registries }), folders({ insecure, flags }), files)
    expect(plan.changes.map(({ path }) => path)).toEqual([`${folder}/9.9.9.9/hosts.toml`])
    expect(plan.notes.filter((note) => note.includes('insecure'))).toHaveLength(7)
  })

  test("keeps the user's own hosts.toml, and lists the certificates of a folder in mirror's", () => {
    const files = filesOf({
      [`${folder}/docker.io/hosts.toml`]: 'server = "https://registry-1.docker.io"\n',
      [`${folder}/gcr.io/b.crt`]: '',
      [`${folder}/gcr.io/a.crt`]: '',
      [`${folder}/gcr.io/me.cert`]: '',
      [`${folder}/gcr.io/me.key`]: '',
      [`${folder}/gcr.io/alone.cert`]: '',
    })
    const plan = after(planDocker(mirror(), folders(), files))
    expect(Object.keys(plan)).toEqual([`${folder}/gcr.io/hosts.toml`])
    expect(plan[`${folder}/gcr.io/hosts.toml`]).toContain(
      'ca = [ "a.crt", "b.crt" ]\nclient = [ [ "me.cert", "me.key" ] ]\n',
    )
  })

  test("copies Docker Hub's other mirrors to hosts.toml", () => {
    const flags = { 'registry-mirror': ['https://b.example/hub'] }
    const files = filesOf({ [file]: '{"registry-mirrors": ["http://127.0.0.1:5055", "https://a.example/"]}' })
    const plan = planDocker(
      mirror(),
      folders({ mirrors: ['https://a.example/', 'http://127.0.0.1:5055/'], flags }),
      files,
    )
    const hosts = after(plan)[`${folder}/docker.io/hosts.toml`]!.match(/^\[host.*$/gm)
    expect(hosts).toEqual([
      '[host."http://127.0.0.1:5055"]',
      '[host."https://a.example"]',
      '[host."https://b.example/hub"]',
    ])
    expect(after(plan)[`${folder}/gcr.io/hosts.toml`]).not.toContain('a.example')
  })

  test('is the same in a second run, and gets the new address of a mirror that has moved', () => {
    const first = after(planDocker(mirror(), folders(), filesOf({})))
    const written = filesOf(first as Record<string, string>)
    expect(planDocker(mirror(), folders(), written).changes).toEqual([])
    const moved = after(planDocker(mirror({ cache: 'http://127.0.0.1:6055' }), folders(), written))
    expect(moved[`${folder}/gcr.io/hosts.toml`]).not.toContain('5055')
  })
})

describe('docker and a mirror with TLS', () => {
  test('get the CA in each folder of a registry, and undo removes it', () => {
    const secure = mirror({ cache: 'https://127.0.0.1:5055', ca: 'PEM\n', fallback: false })
    const written = after(planDocker(secure, folders(), filesOf({})))
    const hub = `${folder}/docker.io/hosts.toml`
    expect(parse(written[hub]!)).toMatchObject({
      ca: ['../127.0.0.1:5055/mirror-ca.crt'],
      host: { 'https://127.0.0.1:5055': { ca: '../127.0.0.1:5055/mirror-ca.crt' } },
    })
    // Adds a mirror and a certificate of the user.
    const changed = written[hub]!.replace('mirror-ca.crt" ]', 'mirror-ca.crt", "mine.crt" ]')
    const files = filesOf({ ...(written as Record<string, string>), [hub]: `${changed}\n[host."https://a.example"]\n` })
    const stripped = after({ changes: stripDocker(secure, folders(), files) })
    expect(parse(stripped[hub]!)).toEqual({ ca: ['mine.crt'], host: { 'https://a.example': {} } })
    expect(stripped[`${folder}/127.0.0.1:5055/mirror-ca.crt`]).toBeUndefined()
  })

  test('get folders for builds of Docker 28 also with the classic image store', () => {
    const paths = (more: Partial<MirrorForClient>, version = '28.0.0') =>
      planDocker(mirror(more), target({ version }), filesOf({})).changes.map(({ path }) => path)
    const secure = { cache: 'https://10.0.0.1:5055', ca: 'PEM\n' }
    expect(paths(secure)).toEqual([
      file,
      `${folder}/docker.io/hosts.toml`,
      `${folder}/gcr.io/hosts.toml`,
      `${folder}/10.0.0.1:5055/mirror-ca.crt`,
    ])
    expect(paths(secure, '27.0.0')).toEqual([file, `${folder}/10.0.0.1:5055/mirror-ca.crt`])
    expect(paths({})).toEqual([file])
  })

  test('get a note on loopback that builds before Docker 28 bypass it', () => {
    const listNotes = (version: string) =>
      planDocker(
        mirror({ cache: 'https://127.0.0.1:5055' }),
        target({ version, imageStore: 'classic' }),
        filesOf({}),
      ).notes.join()
    expect(listNotes('27.5.1')).toContain('docker build')
    expect(listNotes('28.0.0')).not.toContain('docker build')
  })
})

describe('the configuration of Docker without the mirror', () => {
  const strip = (files: Record<string, string>) =>
    after({ changes: stripDocker({ cache: 'http://127.0.0.1:5055', registry: undefined }, target(), filesOf(files)) })

  test('keeps the other settings of daemon.json', () => {
    const text =
      '{\n  "registry-mirrors": ["http://127.0.0.1:5055/", "https://a.example"],\n  "insecure-registries": ["127.0.0.1:5055"],\n  "debug": true\n}\n'
    expect(strip({ [file]: text })).toEqual({
      [file]: '{\n  "registry-mirrors": ["https://a.example"],\n  "debug": true\n}\n',
    })
    expect(strip({ [file]: '{"debug": true}' })).toEqual({})
  })

  test('keeps empty lists for a reload, which ignores missing keys', () => {
    const files = filesOf({ [file]: '{"registry-mirrors": ["http://127.0.0.1:5055"], "debug": true}' })
    const [change] = emptyDaemonJsonLists({ cache: 'http://127.0.0.1:5055' }, file, files, undefined)
    expect(change?.after).toBe('{"registry-mirrors": [], "debug": true}')
  })

  test("removes mirror's hosts.toml, keeps the user's additions, and does not read other files", () => {
    const written = after(planDocker(mirror(), folders(), filesOf({})))[`${folder}/gcr.io/hosts.toml`]!
    const userHosts = '[host."http://127.0.0.1:5055"]\n'
    const more = '\n[host."https://a.example"]\n# theirs\ncapabilities = ["pull"]\n'
    const stripped = strip({
      [`${folder}/gcr.io/hosts.toml`]: written,
      [`${folder}/b.example/hosts.toml`]: written + more,
      [`${folder}/c.example/hosts.toml`]: userHosts,
      [`${folder}/d.example/hosts.toml`]: written.replace('server', 'skip_verify = true\nserver'),
      [`${folder}/e.example/hosts.toml`]: `${written}broken`,
    })
    expect(stripped).toEqual({
      [`${folder}/gcr.io/hosts.toml`]: undefined,
      [`${folder}/b.example/hosts.toml`]: `server = "https://gcr.io"\n${more}`,
      [`${folder}/d.example/hosts.toml`]: 'skip_verify = true\nserver = "https://gcr.io"\n',
    })
  })

  test('keeps a server of the user in hosts.toml, and removes one that is the mirror', () => {
    const path = `${folder}/gcr.io/hosts.toml`
    const written = after(planDocker(mirror(), folders(), filesOf({})))[path]!
    expect(strip({ [path]: written.replace('https://gcr.io', 'https://proxy.example') })).toEqual({
      [path]: 'server = "https://proxy.example"\n',
    })
    const bound = after(planDocker(mirror({ fallback: false }), folders(), filesOf({})))[path]!
    const more = '\n[host."https://a.example"]\n'
    expect(strip({ [path]: bound + more })).toEqual({ [path]: more })
    expect(strip({ [path]: (written + more).replaceAll('\n', '\r\n') })).toEqual({
      [path]: `server = "https://gcr.io"\n${more}`.replaceAll('\n', '\r\n'),
    })
  })
})
