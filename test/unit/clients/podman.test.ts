import { parse, type TomlTable as JsonMap } from 'smol-toml'
import { describe, expect, test } from 'vitest'
import { ownFileHeader } from '../../../src/clients/files/kinds.ts'
import { planPodman, type PodmanTarget } from '../../../src/clients/podman/plan.ts'
import type { PodmanLayout } from '../../../src/clients/podman/registries-conf.ts'
import { FilesSnapshot, type MirrorForClient } from '../../../src/clients/types.ts'

const mirror: MirrorForClient = {
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io', 'quay.io', 'registry.corp.example:8443'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const layout: PodmanLayout = {
  system: ['/usr/share/containers', '/etc/containers'],
  user: '/home/me/.config/containers',
  named: undefined,
  modern: false,
}
const system: PodmanTarget = { files: layout, scope: 'system' }
const user: PodmanTarget = { files: layout, scope: 'user' }
const ownDropIn = '/etc/containers/registries.conf.d/50-mirror.conf'
const oursOfUser = '/home/me/.config/containers/registries.conf.d/50-mirror.conf'

function filesOf(texts: Record<string, string>): FilesSnapshot {
  return new FilesSnapshot(new Map(Object.entries(texts).map(([path, text]) => [path, Buffer.from(text)])))
}

/** Returns the planned tables, by prefix; checks that only one file changes. */
function planned(target: PodmanTarget, texts: Record<string, string>, options: Partial<MirrorForClient> = {}) {
  const plan = planPodman({ ...mirror, ...options }, target, filesOf(texts))
  const written = plan.changes.filter(({ path, after }) => path.endsWith('.conf') && after !== undefined)
  expect(written).toHaveLength(1)
  const tables = JSON.parse(JSON.stringify(parse(written[0]!.after!)['registry'])) as JsonMap[]
  return { path: written[0]!.path, tables: Object.fromEntries(tables.map((table) => [table['prefix'], table])), plan }
}

const table = (prefix: string, more: string, mirrors: string[] = []) =>
  [`[[registry]]`, `prefix = "${prefix}"`, more, ...mirrors.map((one) => `[[registry.mirror]]\n${one}`), ''].join('\n')

describe("podman's drop-in", () => {
  test('names the mirror first for every registry, with the registry in the path', () => {
    const { path, tables } = planned(system, {})
    expect(path).toBe(ownDropIn)
    expect(tables).toEqual({
      'docker.io': {
        prefix: 'docker.io',
        location: 'docker.io',
        mirror: [{ location: '127.0.0.1:5055/docker.io', insecure: true }],
      },
      'quay.io': {
        prefix: 'quay.io',
        location: 'quay.io',
        mirror: [{ location: '127.0.0.1:5055/quay.io', insecure: true }],
      },
      'registry.corp.example:8443': {
        prefix: 'registry.corp.example:8443',
        location: 'registry.corp.example:8443',
        // Expects an underscore, because a colon is not valid there in an image reference.
        mirror: [{ location: '127.0.0.1:5055/registry.corp.example_8443', insecure: true }],
      },
    })
  })

  test('comes with the CA for every name of the mirror and its registry', () => {
    const { plan } = planned(
      system,
      {},
      {
        cache: 'https://127.0.0.1:5055',
        registry: 'https://127.0.0.1:5001',
        ca: 'PEM\n',
      },
    )
    const authorities = plan.changes.map((change) => change.path).filter((path) => path.endsWith('.crt'))
    expect(authorities).toEqual(
      ['127.0.0.1:5055', '127.0.0.1:5001', 'localhost:5001'].map(
        (host) => `/etc/containers/certs.d/${host}/mirror-ca.crt`,
      ),
    )
  })

  test('comes without a CA for a mirror that needs none', () => {
    const { tables, plan } = planned(system, {}, { cache: 'https://mirror.lan' })
    expect(tables['docker.io']).toMatchObject({ mirror: [{ location: 'mirror.lan/docker.io' }] })
    expect(JSON.stringify(tables)).not.toContain('insecure')
    expect(plan.changes.map((change) => change.path).join()).not.toContain('certs.d')
  })

  test('gives a host without a dot its port, because podman would take it for a repository', () => {
    const { tables } = planned(system, {}, { cache: 'http://mirror' })
    expect(tables['docker.io']).toMatchObject({ mirror: [{ location: 'mirror:80/docker.io', insecure: true }] })
  })

  test('says that the registry for pushed images speaks HTTP', () => {
    const registry = 'http://127.0.0.1:5001'
    expect(planned(system, {}, { registry }).tables['localhost:5001']).toEqual({
      prefix: 'localhost:5001',
      location: '127.0.0.1:5001',
      insecure: true,
    })
    const own = { '/etc/containers/registries.conf': table('localhost:5001', 'location = "localhost:5001"') }
    expect(planned(system, own, { registry }).tables['localhost:5001']).toBeUndefined()
    const far = planned(system, {}, { registry: 'http://mirror.lan:5001' })
    expect(far.tables['mirror.lan:5001']).toMatchObject({ location: 'mirror.lan:5001', insecure: true })
  })

  test('keeps the mirrors and keys of the table it replaces', () => {
    const { tables, plan } = planned(system, {
      '/etc/containers/registries.conf': table('docker.io', 'location = "docker.io"\nsome-key = "x"', [
        'location = "hub.corp.example"\npull-from-mirror = "tag-only"',
      ]),
    })
    expect(tables['docker.io']).toEqual({
      prefix: 'docker.io',
      location: 'docker.io',
      'some-key': 'x',
      mirror: [
        { location: '127.0.0.1:5055/docker.io', insecure: true },
        { location: 'hub.corp.example', 'pull-from-mirror': 'tag-only' },
      ],
    })
    expect(plan.notes.join()).toContain('/etc/containers/registries.conf:1')
  })

  test('keeps other mirrors to digests only, but not the mirror itself', () => {
    const { tables } = planned(system, {
      '/etc/containers/registries.conf': table('quay.io', 'location = "quay.io"\nmirror-by-digest-only = true', [
        'location = "quay.corp.example"',
      ]),
    })
    expect(tables['quay.io']).toEqual({
      prefix: 'quay.io',
      location: 'quay.io',
      mirror: [
        { location: '127.0.0.1:5055/quay.io', insecure: true },
        { location: 'quay.corp.example', 'pull-from-mirror': 'digest-only' },
      ],
    })
  })

  test('follows a location to another registry that the mirror knows', () => {
    const { tables } = planned(system, {
      '/etc/containers/registries.conf':
        table('docker.io', 'location = "quay.io/hub"') + table('quay.io', 'location = "registry-1.docker.io"'),
    })
    expect(tables['docker.io']).toMatchObject({
      location: 'quay.io/hub',
      mirror: [{ location: '127.0.0.1:5055/quay.io/hub', insecure: true }],
    })
    expect(tables['quay.io']).toMatchObject({
      location: 'registry-1.docker.io',
      mirror: [{ location: '127.0.0.1:5055/docker.io', insecure: true }],
    })
  })

  test.each([
    ['blocked', 'location = "quay.io"\nblocked = true', 'is blocked in /etc/containers/registries.conf:1'],
    ['taken from elsewhere', 'location = "proxy.corp.example/quay"', 'quay.io is taken from proxy.corp.example/quay'],
    ['pointed here by hand', 'location = "127.0.0.1:5055/quay.io"', 'already use the mirror'],
  ])('leaves out a registry that is %s, with a note', (_, keys, note) => {
    const { tables, plan } = planned(system, { '/etc/containers/registries.conf': table('quay.io', keys) })
    expect(Object.keys(tables)).toEqual(['docker.io', 'registry.corp.example:8443'])
    expect(plan.notes.join('\n')).toContain(note)
  })

  test('leaves out a registry whose name no image reference of the mirror can contain', () => {
    const { tables, plan } = planned(system, {}, { registries: ['docker.io', 'localhost:5000', '[::1]:5000'] })
    expect(Object.keys(tables)).toEqual(['docker.io'])
    expect(plan.notes.join()).toContain('localhost:5000 cannot use the mirror')
  })

  test('is refused if no registry is left to mirror', () => {
    const files = filesOf({ '/etc/containers/registries.conf': table('docker.io', 'blocked = true\nlocation = "d"') })
    const registry = 'http://127.0.0.1:5001'
    expect(() => planPodman({ ...mirror, registry, registries: ['docker.io'] }, system, files)).toThrow(
      'No registry is left',
    )
  })

  test('takes over the keys of a wildcard table', () => {
    const { tables } = planned(system, {
      '/etc/containers/registries.conf': table('*.example', 'insecure = true') + table('*.corp.example', 'some = 1'),
    })
    expect(tables['docker.io']).not.toHaveProperty('insecure')
    // Checks that the wildcard does not match a name with a port.
    expect(tables['registry.corp.example:8443']).not.toHaveProperty('some')
    const bare = { registries: ['registry.corp.example'] }
    const wild = { '/etc/containers/registries.conf': table('*.example', 'a = 1') + table('*.corp.example', 'b = 1') }
    expect(planned(system, wild, bare).tables['registry.corp.example']).toMatchObject({ b: 1 })
  })

  test('leaves out a registry with the location of another one and other settings, which podman refuses', () => {
    const { tables, plan } = planned(system, {
      '/etc/containers/registries.conf': table('docker.io', 'location = "quay.io"\ninsecure = true'),
    })
    expect(Object.keys(tables)).toEqual(['docker.io', 'registry.corp.example:8443'])
    expect(plan.notes.join()).toContain('quay.io is left out')
  })

  test('takes the first of two tables in one file and the last of two files, like podman', () => {
    const { tables } = planned(system, {
      '/etc/containers/registries.conf': table('docker.io', 'location = "docker.io"', ['location = "one"']),
      '/etc/containers/registries.conf.d/10.conf':
        table('docker.io', 'location = "docker.io"', ['location = "two"']) +
        table('docker.io/', 'location = "docker.io"', ['location = "three"']),
      '/etc/containers/registries.conf.d/20.conf.off': table('docker.io', 'location = "docker.io"'),
    })
    expect(tables['docker.io']).toMatchObject({ mirror: [{}, { location: 'two' }] })
    expect((tables['docker.io']!['mirror'] as unknown[]).length).toBe(2)
  })

  test('has a note on parts of a registry with a table of their own', () => {
    const { plan } = planned(system, {
      '/etc/containers/registries.conf': `\n\n${table('docker.io/library', 'location = "hub.corp.example"')}`,
    })
    expect(plan.notes.join()).toContain(
      'docker.io/library has settings of its own in /etc/containers/registries.conf:3',
    )
  })

  test("leaves out the registry's own address without fallback", () => {
    const { tables, plan } = planned(system, {}, { fallback: false })
    expect(tables['quay.io']).toEqual({ prefix: 'quay.io', location: '127.0.0.1:5055/quay.io', insecure: true })
    expect(plan.notes.join()).toContain('pushes')
  })

  test('is not merged with itself or the drop-in of the other scope', () => {
    const first = planned(system, {}).plan.changes[0]!.after!
    expect(planPodman(mirror, system, filesOf({ [ownDropIn]: first })).changes).toEqual([])
    const later = planned(user, { [ownDropIn]: first.replaceAll(':5055', ':6055') })
    expect(later.path).toBe(oursOfUser)
    expect(later.tables['docker.io']!['mirror']).toHaveLength(1)
  })

  test('gets the later name if podman reads another file after the first one, and loses the first name', () => {
    const corp = { '/etc/containers/registries.conf.d/99-corp.conf': table('docker.io', 'location = "docker.io"') }
    const { path, plan } = planned(system, { ...corp, [ownDropIn]: `${ownFileHeader}[[registry]]\nlocation = "x"\n` })
    expect(path).toBe('/etc/containers/registries.conf.d/zz-mirror.conf')
    expect(plan.changes).toContainEqual(expect.objectContaining({ path: ownDropIn, after: undefined }))
    const harmless = { '/etc/containers/registries.conf.d/99-corp.conf': table('corp.example', 'location = "x"') }
    expect(planned(system, harmless).path).toBe(ownDropIn)
  })

  test('is refused if podman reads another file after both of its names', () => {
    const files = { '/etc/containers/registries.conf.d/zzz.conf': table('docker.io', 'location = "docker.io"') }
    expect(() => planned(system, files)).toThrow('/etc/containers/registries.conf.d/zzz.conf:1 is read after')
  })

  test('is refused if mirror did not write the file of that name', () => {
    expect(() => planned(system, { [ownDropIn]: table('docker.io', 'location = "docker.io"') })).toThrow('left alone')
  })

  test.each([
    ['no TOML', '[[registry]]\nlocation = = "x"', 'registries.conf:2:12'],
    ['a key twice', '[[registry]]\nlocation = "x"\nlocation = "y"', 'registries.conf:3:'],
    ['a control character', '# \u0001', 'registries.conf:1:'],
  ])('is refused beside a file with %s', (_, text, where) => {
    expect(() => planned(system, { '/etc/containers/registries.conf': text })).toThrow(where)
  })
})

describe("the user's files", () => {
  const main = '/home/me/.config/containers/registries.conf'
  const corp = { '/etc/containers/registries.conf': table('docker.io', 'location = "docker.io"', ['location = "one"']) }

  test('replace all system files by a registries.conf before version 6', () => {
    const texts = { ...corp, [main]: table('quay.io', 'location = "quay.io"', ['location = "two"']) }
    const { tables, path } = planned(user, texts)
    expect(path).toBe(oursOfUser)
    expect(tables['docker.io']!['mirror']).toHaveLength(1)
    expect(tables['quay.io']!['mirror']).toHaveLength(2)
    expect(planned(system, texts).plan.notes.join()).toContain(`reads ${main} instead`)
  })

  test('add to the system files if they are drop-ins', () => {
    expect(planned(user, corp).tables['docker.io']!['mirror']).toHaveLength(2)
  })

  test("win over the system's drop-ins, which a system-wide plan notes", () => {
    const own = { '/home/me/.config/containers/registries.conf.d/10.conf': table('quay.io', 'location = "quay.io"') }
    expect(planned(system, own).plan.notes.join()).toContain('For you, /home/me')
    expect(planned(user, own).path).toBe(oursOfUser)
  })

  test('are not read as registries.conf if CONTAINERS_REGISTRIES_CONF is set', () => {
    const named = { files: { ...layout, named: '/opt/my.conf' }, scope: 'user' as const }
    const texts = { ...corp, '/opt/my.conf': table('quay.io', 'location = "quay.io"', ['location = "two"']) }
    const { tables } = planned(named, texts)
    expect(tables['docker.io']!['mirror']).toHaveLength(1)
    expect(tables['quay.io']!['mirror']).toHaveLength(2)
  })

  test('are no drop-ins for podman 6 if CONTAINERS_REGISTRIES_CONF is set, so another variable has to name the drop-in', () => {
    const files = { ...layout, modern: true, named: '/opt/my.conf' }
    const texts = { '/opt/my.conf': table('quay.io', 'location = "quay.io"', ['location = "two"']), ...corp }
    const { tables, path, plan } = planned({ files, scope: 'user' }, texts)
    expect(path).toBe(oursOfUser)
    // Checks that the plan takes over the mirrors of the named file, and does not read the other files.
    expect(tables['quay.io']!['mirror']).toHaveLength(2)
    expect(tables['docker.io']!['mirror']).toHaveLength(1)
    expect(plan.todo).toEqual([expect.stringContaining(`export CONTAINERS_REGISTRIES_CONF_OVERRIDE=${oursOfUser} `)])
    const ownOverride = { files: { ...files, override: oursOfUser }, scope: 'user' as const }
    expect(planned(ownOverride, texts).plan.todo).toEqual([])
    const otherOverride = { files: { ...files, override: '/opt/over.conf' }, scope: 'user' as const }
    expect(() => planned(otherOverride, texts)).toThrow('podman reads only /opt/my.conf and /opt/over.conf')
  })

  test('come before the file of CONTAINERS_REGISTRIES_CONF_OVERRIDE since version 6', () => {
    const files = { ...layout, modern: true, override: '/opt/over.conf' }
    const other = { '/opt/over.conf': table('registry.other.example', 'location = "registry.other.example"') }
    expect(planned({ files, scope: 'user' }, other).path).toBe(oursOfUser)
    const same = { '/opt/over.conf': table('quay.io', 'location = "quay.io"') }
    expect(() => planned({ files, scope: 'user' }, same)).toThrow(
      expect.objectContaining({
        exit: 2,
        hints: [expect.stringContaining('unset CONTAINERS_REGISTRIES_CONF_OVERRIDE')],
      }),
    )
    expect(planned({ files: { ...files, modern: false }, scope: 'user' }, same).path).toBe(oursOfUser)
  })

  test('come with a note on a variable that names a missing file', () => {
    const files = { ...layout, named: '/opt/gone.conf' }
    expect(planned({ files, scope: 'user' }, {}).plan.notes.join()).toContain('/opt/gone.conf, which does not exist')
  })

  test.each([
    ['[registries.search]\nregistries = ["docker.io"]\n', true, 'main'],
    ['[registries.insecure]\nregistries = []\n', true, 'main'],
    ['[registries.search]\nregistries = ["docker.io"]\n', false, 'drop-in'],
    ['[registries.block]\nregistries = ["x"]\n', true, 'drop-in'],
  ])(
    'the first version of the format is refused where podman refuses it: %j (since 6: %s), as a %s',
    (text, modern, as) => {
      const path = as === 'main' ? '/etc/containers/registries.conf' : '/etc/containers/registries.conf.d/10.conf'
      const refused = { files: { ...layout, modern }, scope: 'system' as const }
      expect(() => planned(refused, { [path]: text })).toThrow(
        expect.objectContaining({ exit: 2, message: expect.stringContaining(`podman refuses ${path}`) as string }),
      )
    },
  )

  test('can have version 1 of the format in registries.conf until version 6, with a note', () => {
    const text = '[registries.insecure]\nregistries = ["corp.example"]\n'
    const { plan } = planned(system, { '/etc/containers/registries.conf': text })
    expect(plan.notes.join()).toContain(
      '/etc/containers/registries.conf is in the first version of the format, which podman 6',
    )
  })

  test('hide no drop-ins of the system by a registries.conf since version 6', () => {
    const modern = { files: { ...layout, modern: true }, scope: 'system' as const }
    const { plan } = planned(modern, { [main]: table('quay.io', 'location = "quay.io"') })
    expect(plan.notes).toEqual([])
  })

  test('come with a note on other readers with another order', () => {
    const files = { ...layout, modern: true, uid: 0 }
    const others = [
      { name: 'skopeo 1.18', files: layout },
      { name: 'Users without root', files: { ...layout, modern: true, user: undefined } },
    ]
    const { plan } = planned(
      { files, scope: 'system', others },
      {
        [main]: '',
        '/etc/containers/registries.rootless.conf.d/99.conf': table('quay.io', 'location = "quay.io"'),
      },
    )
    expect(plan.notes).toEqual([
      `skopeo 1.18: not mirrored by this file. It reads ${main} instead.`,
      'Users without root: /etc/containers/registries.rootless.conf.d/99.conf:1 replaces the table of quay.io in this file.',
    ])
  })

  test('are sorted by name across folders since version 6, and hide drop-ins of the same name', () => {
    const modern = { files: { ...layout, modern: true }, scope: 'user' as const }
    const texts = {
      [main]: '',
      '/usr/share/containers/registries.conf.d/90.conf': table('docker.io', 'location = "docker.io"', [
        'location = "hidden"',
      ]),
      '/etc/containers/registries.conf.d/90.conf': table('quay.io', 'location = "quay.io"', ['location = "two"']),
      '/etc/containers/registries.rootless.conf.d/40.conf': table('docker.io', 'location = "docker.io"', [
        'location = "three"',
      ]),
    }
    const { tables, path } = planned(modern, texts)
    expect(path).toBe('/home/me/.config/containers/registries.conf.d/zz-mirror.conf')
    expect(tables['docker.io']).toMatchObject({ mirror: [{}, { location: 'three' }] })
    expect(tables['quay.io']).toMatchObject({ mirror: [{}, { location: 'two' }] })
  })
})
