import { describe, expect, test } from 'vitest'
import { inspectPodman } from '../../../src/clients/podman/inspect.ts'
import type { PodmanLayout } from '../../../src/clients/podman/registries-conf.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'

const cache = 'http://127.0.0.1:5055'
const header = '# Written by mirror. To take it back: mirror configure --undo\n'
const dropIn = '/home/me/.config/containers/registries.conf.d/50-mirror.conf'
const main = '/home/me/.config/containers/registries.conf'
const table = (registry: string, insecure = 'insecure = true\n') =>
  `[[registry]]\nprefix = "${registry}"\nlocation = "${registry}"\n[[registry.mirror]]\nlocation = "127.0.0.1:5055/${registry}"\n${insecure}\n`

/** Returns the faults of these files, by podman before version 6 unless the layout says otherwise. */
function inspect(files: Readonly<Record<string, string>>, layout: Partial<PodmanLayout> = {}) {
  const contents = Object.entries(files).map(([path, text]) => [path, new TextEncoder().encode(text)] as const)
  const all: PodmanLayout = {
    system: ['/usr/share/containers', '/etc/containers'],
    user: '/home/me/.config/containers',
    named: undefined,
    modern: false,
    ...layout,
  }
  return inspectPodman(cache, { files: all, scope: 'user' }, new FilesSnapshot(new Map(contents)))
}

describe('of the files of podman, the doctor', () => {
  const own = header + table('docker.io') + table('quay.io')

  test('accepts CONTAINERS_REGISTRIES_CONF before podman 6, which still reads the drop-ins', () => {
    const named = '/home/me/mine.conf'
    const text = 'unqualified-search-registries = ["docker.io"]\n'
    expect(inspect({ [named]: text, [dropIn]: own }, { named })).toEqual([])
    const modern = inspect({ [named]: text, [dropIn]: own }, { named, modern: true })
    expect(modern).toEqual([
      expect.objectContaining({ fault: 'podman.variable', saw: expect.stringContaining('podman 6 and later') }),
    ])
  })

  test('reports a blocked registry unless the table of the mirror replaces that one', () => {
    const blocked = '[[registry]]\nlocation = "docker.io"\nblocked = true\n'
    expect(inspect({ [main]: blocked, [dropIn]: own })).toEqual([])
    expect(inspect({ [main]: blocked })).toEqual([
      expect.objectContaining({ fault: 'podman.blocked', saw: `${main}:3 blocks docker.io.` }),
    ])
  })

  test.each([
    ['a key with another value', 'insecure = false\n', 14],
    ['the location of a mirror that lacks the key', '', 13],
  ])('names the line of %s, not that of the first table', (_, insecure, line) => {
    expect(inspect({ [dropIn]: `${header}${table('docker.io')}${table('quay.io', insecure)}` })).toEqual([
      expect.objectContaining({
        fault: 'podman.insecure',
        saw: expect.stringContaining(`${dropIn}:${line} has no insecure = true`),
      }),
    ])
  })
})
