import { describe, expect, test } from 'vitest'
import { planBuildkit, stripBuildkit } from '../../../src/clients/buildkit/plan.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'
import { readToml } from '../../../src/clients/edit/toml.ts'

const path = '/etc/buildkit/buildkitd.toml'
const ca = { path: '/etc/buildkit/mirror-ca.crt', name: '/etc/buildkit/mirror-ca.crt' }
const target = { path, ca }
const cache = 'http://127.0.0.1:5055'
const mirror = {
  cache,
  registry: undefined,
  registries: ['docker.io', 'gcr.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}

const filesOf = (text: string | undefined) =>
  new FilesSnapshot(text === undefined ? new Map() : new Map([[path, Buffer.from(text)]]))

function plan(text: string | undefined): string {
  const [change] = planBuildkit(mirror, target, filesOf(text)).changes
  return change!.after!
}

function changesOf(text: string) {
  return planBuildkit(mirror, target, filesOf(text)).changes
}

/** Strips a file; returns undefined when the file is removed. */
function strip(text: string): string | undefined {
  const [change] = stripBuildkit({ cache }, target, filesOf(text))
  return change ? change.after : text
}

describe('a buildkitd.toml', () => {
  test("sets http only in the mirror's own table", () => {
    const text = plan(undefined)
    expect(text).toContain('[registry."docker.io"]\nmirrors = [ "127.0.0.1:5055" ]\n')
    expect(text).toContain('[registry."127.0.0.1:5055"]\nhttp = true\n')
    expect(text.match(/http/g)).toHaveLength(1)
  })

  test('is not changed by a second run', () => {
    expect(planBuildkit(mirror, target, filesOf(plan(undefined))).changes).toEqual([])
  })

  test('of the user keeps every byte and is the same again without the mirror', () => {
    for (const text of [
      '# theirs\ndebug = true\n',
      '[registry."docker.io"]\n  mirrors = ["a.example"]\n',
      '[registry."docker.io"]\nhttp = false\n\n[registry."gcr.io"]\nmirrors = ["a.example", "b.example"]\n',
      '[worker.oci]\r\n  gc = true\r\n',
    ])
      expect(strip(plan(text))?.trimEnd()).toBe(text.trimEnd())
  })

  test.each([
    ['lists of several lines', '[registry."docker.io"]\n  mirrors = [\n    "a.example",\n  ]\n'],
    ['comments in them', '[registry."docker.io"]\n  mirrors = [ # ours\n    # first\n    "a.example", # one\n  ]\n'],
    [
      'brackets in strings',
      '[registry."docker.io"]\nmirrors = [\n  "a.example/[x]",\n]\n[worker.oci]\nlabels = { a = "[b]" }\n',
    ],
    ['literal quotes and spaces', "[ registry . 'docker.io' ]\n\t'mirrors' = ['a.example']\n"],
    ['no table for us yet', '# mine\ndebug = true\n'],
  ])('keeps its line ends and stays valid TOML: %s', (_, text) => {
    for (const end of ['\n', '\r\n']) {
      for (const mark of ['', '\uFEFF']) {
        for (const final of [end, '']) {
          const before = mark + text.trimEnd().replaceAll('\n', end) + final
          const after = plan(before)
          expect(after.replaceAll(end, '')).not.toMatch(/[\r\n]/)
          expect(readToml(path, after)).toMatchObject({
            registry: { 'docker.io': { mirrors: expect.arrayContaining(['127.0.0.1:5055']) as unknown } },
          })
          expect(changesOf(after)).toEqual([])
          expect(strip(after)!.trimEnd()).toBe(before.trimEnd())
        }
      }
    }
  })

  test('with mixed line ends gets no bare carriage return', () => {
    const after = plan('debug = true\r\n[registry."docker.io"]\nmirrors = [\r\n"a",\n]\n')
    expect(after).not.toMatch(/\r(?!\n)/)
    expect(after).toContain('mirrors = [\r\n"127.0.0.1:5055",\r\n"a",\n]\n')
  })

  test('is removed if mirror wrote it and nothing else is in it', () => {
    expect(strip(plan(undefined))).toBeUndefined()
  })

  test('that mirror wrote keeps what the user added', () => {
    const text = plan(undefined)
      .replace('"127.0.0.1:5055" ]', '"127.0.0.1:5055", "a.example" ]')
      .replace('http = true', 'http = true\ninsecure = true')
    expect(strip(text)).toBe(
      '[registry."docker.io"]\nmirrors = [ "a.example" ]\n\n[registry."127.0.0.1:5055"]\ninsecure = true\n',
    )
  })

  test.each([
    ['a remark at its end', '# theirs\ndebug = true\n', '# mine\n[worker.oci]\ngc = true\n'],
    ['a remark in a list that was empty', '[registry."docker.io"]\nmirrors = [ # none yet\n  # here\n]\n', ''],
    ['a remark in a table that was empty', '[registry."docker.io"]\n# none yet\n', ''],
    [
      'a remark that names the mirror',
      '[registry."docker.io"]\nmirrors = [\n  # "127.0.0.1:5055",\n  "a.example",\n]\n',
      '',
    ],
  ])('loses only the mirror and keeps %s', (_, before, since) => {
    for (const end of ['\n', '\r\n']) {
      const [text, added] = [before.replaceAll('\n', end), since.replaceAll('\n', end)]
      const after = strip(plan(text) + added)!
      const listComments = (all: string) => all.split(end).filter((line) => line.includes('#'))
      expect(listComments(after)).toEqual(listComments(text + added))
      expect(readToml(path, after)).not.toMatchObject({ registry: { 'gcr.io': {} } })
      expect(after.replaceAll('# "127.0.0.1:5055"', '')).not.toContain('127.0.0.1:5055')
    }
  })

  test('names the CA of a mirror with TLS, and sets http = false on loopback', () => {
    const trusting = { ...mirror, cache: 'https://127.0.0.1:5055', ca: 'PEM\n' }
    const own = '[registry."127.0.0.1:5055"]\ninsecure = false\n'
    for (const text of ['# theirs\n', own]) {
      const { changes } = planBuildkit(trusting, target, filesOf(text))
      const written = new FilesSnapshot(new Map(changes.map((change) => [change.path, Buffer.from(change.after!)])))
      expect(written.getText(path)).toContain(
        '[registry."127.0.0.1:5055"]\nhttp = false\nca = [ "/etc/buildkit/mirror-ca.crt" ]\n',
      )
      expect(planBuildkit(trusting, target, written)).toMatchObject({ changes: [], notes: [] })
      const after = stripBuildkit(trusting, target, written).map((change) => [change.path, change.after?.trimEnd()])
      expect(after).toEqual([
        [path, text.trimEnd()],
        [ca.path, undefined],
      ])
    }
    const beyond = planBuildkit({ ...trusting, cache: 'https://mirror.lan' }, target, filesOf(undefined))
    expect(beyond.changes[0]!.after).not.toContain('http')
  })

  test('is refused if its http does not fit the mirror', () => {
    const plain = '[registry."127.0.0.1:5055"]\nhttp = true\n'
    const refused = expect.objectContaining({ exit: 2 }) as Error
    expect(() => planBuildkit({ ...mirror, cache: 'https://127.0.0.1:5055' }, target, filesOf(plain))).toThrow(refused)
    expect(() => plan(plain.replace('true', 'false'))).toThrow(refused)
  })

  test('is refused if its keys are dotted', () => {
    const text = 'registry."docker.io".mirrors = ["127.0.0.1:5055"]\n'
    expect(() => plan('registry."docker.io".mirrors = ["a.example"]\n')).toThrow(expect.objectContaining({ exit: 2 }))
    expect(() => strip(text)).toThrow(expect.objectContaining({ exit: 2 }))
    const others = 'registry."docker.io".mirrors = ["a.example"]\n'
    expect(strip(others)).toBe(others)
  })
})
