import { describe, expect, test } from 'vitest'
import { sortByReadingOrder, listConfigFiles, type PodmanLayout } from '../../../src/clients/podman/registries-conf.ts'

const [usr, etc, home] = ['/usr/share/containers', '/etc/containers', '/home/me/.config/containers']
const before: PodmanLayout = { system: [usr, etc], user: home, named: undefined, modern: false }
const modern: PodmanLayout = { ...before, modern: true, uid: 1000 }

// Lists all possible files; the number in a name is its rank among the drop-ins.
const mains = [home, etc, usr].map((folder) => `${folder}/registries.conf`)
const dropIns = [
  `${usr}/registries.conf.d/90-usr.conf`,
  `${etc}/registries.conf.d/50-etc.conf`,
  `${etc}/registries.rootful.conf.d/40-root.conf`,
  `${etc}/registries.rootless.conf.d/60-rootless.conf`,
  `${etc}/registries.rootless.conf.d/1000/30-me.conf`,
  `${etc}/registries.rootless.conf.d/1001/35-other.conf`,
  `${usr}/registries.rootless.conf.d/70-usr-rootless.conf`,
  `${home}/registries.conf.d/20-home.conf`,
]
const others = [
  '/opt/named.conf',
  '/opt/over.conf',
  `${etc}/registries.conf.d/no.txt`,
  `${etc}/registries.conf.d/sub/x.conf`,
]
const all = [...mains, ...dropIns, ...others]
const names = (paths: readonly string[]) => paths.map((path) => path.replace(/^.*\//, '').replace('.conf', ''))

describe('the order in which the files of registries are read', () => {
  // Tests the rules of podman 4 and 5, then those of podman 6; a later file replaces an earlier one.
  test.each<[string, PodmanLayout, readonly string[], string]>([
    ["the user's own file alone, with the drop-ins of the user", before, all, `${home} 20-home`],
    [
      "without it the administrator's, and all drop-ins by folder",
      before,
      all.slice(1),
      `${etc} 90-usr 50-etc 20-home`,
    ],
    [
      'a named file with all drop-ins',
      { ...before, named: '/opt/named.conf' },
      all,
      '/opt/named 90-usr 50-etc 20-home',
    ],
    ['no file of the override', { ...before, override: '/opt/over.conf' }, all, `${home} 20-home`],
    ['for the system no file of a user', { ...before, user: undefined }, all, `${etc} 90-usr 50-etc`],

    [
      '6: all drop-ins by name, whatever the main file',
      modern,
      all,
      `${home} 20-home 30-me 50-etc 60-rootless 70-usr-rootless 90-usr`,
    ],
    [
      "6: the distribution's main file last",
      modern,
      all.slice(2),
      `${usr} 20-home 30-me 50-etc 60-rootless 70-usr-rootless 90-usr`,
    ],
    ['6: for root those of root', { ...modern, uid: 0 }, all, `${home} 20-home 40-root 50-etc 90-usr`],
    [
      '6: for another user those of that user',
      { ...modern, uid: 1001 },
      all,
      `${home} 20-home 35-other 50-etc 60-rootless 70-usr-rootless 90-usr`,
    ],
    [
      '6: for nobody in particular those of all without root',
      { ...modern, uid: undefined },
      all,
      `${home} 20-home 50-etc 60-rootless 70-usr-rootless 90-usr`,
    ],
    ['6: a named file with no drop-ins', { ...modern, named: '/opt/named.conf' }, all, '/opt/named'],
    [
      '6: an override last',
      { ...modern, override: '/opt/over.conf', uid: 0 },
      all,
      `${home} 20-home 40-root 50-etc 90-usr /opt/over`,
    ],
    [
      '6: an override beside a named file',
      { ...modern, named: '/opt/named.conf', override: '/opt/over.conf' },
      all,
      '/opt/named /opt/over',
    ],
  ])('is %s', (_, files, paths, order) => {
    const read = sortByReadingOrder(files, paths)
    const [first, ...rest] = names(read)
    const main = read[0]!.replace(/\/registries\.conf$/, '').replace(/\.conf$/, '')
    const last = rest.map((name, at) => (read[at + 1]!.startsWith('/opt/') ? `/opt/${name}` : name))
    expect([main, ...last].join(' ')).toBe(order)
    expect(first).toBeDefined()
  })

  test("has one of several files of the same name since version 6: the user's over the administrator's, that of a special folder over others", () => {
    const folders = [
      `${usr}/registries.conf.d`,
      `${usr}/registries.rootless.conf.d`,
      `${usr}/registries.rootless.conf.d/1000`,
      `${etc}/registries.conf.d`,
      `${etc}/registries.rootless.conf.d`,
      `${etc}/registries.rootless.conf.d/1000`,
      `${home}/registries.conf.d`,
    ]
    const paths = folders.map((folder) => `${folder}/50-mirror.conf`)
    for (let count = 1; count <= paths.length; count += 1)
      expect(sortByReadingOrder(modern, paths.slice(0, count).toReversed())).toEqual([paths[count - 1]])
    expect(sortByReadingOrder(before, paths)).toEqual([paths[0], paths[3], paths[6]])
  })

  test('contains only files that are read before planning, by all rules', () => {
    for (const files of [
      before,
      modern,
      { ...modern, uid: 0 },
      { ...modern, named: '/opt/named.conf', override: '/opt/over.conf' },
    ]) {
      const { files: single, trees } = listConfigFiles(files)
      for (const path of sortByReadingOrder(files, all))
        expect(single.includes(path) || trees.some((tree) => path.startsWith(`${tree}/`)), path).toBe(true)
    }
  })
})
