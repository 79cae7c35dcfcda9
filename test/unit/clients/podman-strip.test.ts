import { describe, expect, test } from 'vitest'
import { ownFileHeader } from '../../../src/clients/files/kinds.ts'
import { planPodman, type PodmanTarget, stripPodman } from '../../../src/clients/podman/plan.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'

const path = '/etc/containers/registries.conf.d/50-mirror.conf'
const target: PodmanTarget = {
  files: { system: ['/etc/containers'], user: undefined, named: undefined, modern: false },
  scope: 'system',
}
const mirror = { cache: 'http://127.0.0.1:5055', registry: 'http://127.0.0.1:5001' }
const filesOf = (text: string) => new FilesSnapshot(new Map([[path, Buffer.from(text)]]))
const written = (fallback: boolean) => {
  const registries = ['docker.io', 'quay.io']
  const plan = { ...mirror, registries, defaultUpstream: 'docker.io', fallback }
  return planPodman(plan, target, new FilesSnapshot(new Map())).changes[0]!.after!
}
const strip = (text: string) => stripPodman(mirror, target, filesOf(text))
const stripped = (text: string) => strip(text)[0]!.after

describe("removing the mirror's tables from a drop-in that the user changed", () => {
  test.each([true, false])('removes a file without other contents (fallback %s)', (fallback) => {
    expect(strip(written(fallback))).toEqual([{ path, before: written(fallback), after: undefined }])
    expect(stripped(`${written(fallback)}\n\n`)).toBeUndefined()
  })

  test.each(['\n', '\r\n'])("keeps the user's tables and comments to the byte (line end %j)", (end) => {
    const own = `# mine${end}[[registry]]${end}\tlocation = "corp.example"  # ours${end}\tinsecure = true${end}[aliases]${end}"a" = "corp.example/a"${end}`
    expect(stripped(written(true) + own)).toBe(own)
    expect(stripped(written(true).replace(ownFileHeader, ownFileHeader + own))).toBe(own)
    expect(stripped(written(false) + own)).toBe(own)
  })

  test('keeps a mirror that the user added to a table that mirror wrote', () => {
    const text = written(true).replace(
      '[[registry]]\nprefix = "quay.io"',
      '  [[registry.mirror]]\n  location = "hub.corp.example"\n\n[[registry]]\nprefix = "quay.io"',
    )
    expect(stripped(text)).toBe(
      '[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n\n  [[registry.mirror]]\n  location = "hub.corp.example"\n\n',
    )
  })

  test('keeps a table that mirror wrote if the user added a key', () => {
    const text = written(true).replace('location = "docker.io"\n', 'location = "docker.io"\nblocked = true\n')
    expect(stripped(text)).toBe('[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\nblocked = true\n\n')
  })

  test('is refused if the tables have no headings or the file is invalid', () => {
    expect(() => strip(`registry = [{ location = "127.0.0.1:5055/docker.io" }, { location = "x" }]\n`)).toThrow(
      'can no longer be identified',
    )
    expect(() => strip(`[[registry]]\nlocation = "docker.io" oops`)).toThrow(`${path}:2:`)
  })
})
