import { createHash } from 'node:crypto'
import { appendFile, mkdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { makeImage, makeIndex } from '../support/images.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

const names = ['one', 'two', 'team/three']
const image = makeImage({ manifest: { annotations: { 'org.example': 'kept' } } })
const later = makeImage({ seed: 1 })

const folder = (home: string) => join(home, 'data', 'registry', 'v1', 'repositories')
/** Returns the path of a repository's record. */
const journalOf = (home: string, name: string) =>
  join(folder(home), `${createHash('sha256').update(name).digest('hex')}.jsonl`)

/** Creates the home of a stopped registry with three repositories. */
async function pushedHome(): Promise<string> {
  const registry = await startTestRegistry()
  for (const name of names) {
    await registry.push(name, 'v1', image)
    await registry.push(name, 'v2', later)
  }
  await registry.close()
  return registry.home
}

async function expectWhole(registry: TestRegistry, name: string): Promise<void> {
  expectContent(await registry.get(`/v2/${name}/manifests/v1`), image.digest)
  expectContent(await registry.get(`/v2/${name}/manifests/${later.digest}`), later.digest)
  for (const digest of image.blobs.keys()) expectContent(await registry.get(`/v2/${name}/blobs/${digest}`), digest)
}

const damages: [string, (path: string) => Promise<void>][] = [
  ['is rubbish from its first byte to its last', (path) => writeFile(path, Buffer.alloc(5000, 0xa5))],
  ['is empty', (path) => truncate(path, 0)],
  [
    'has become a folder',
    async (path) => {
      await rm(path)
      await mkdir(path)
    },
  ],
  ['was written by a newer version', (path) => writeFile(path, '{"format":99,"name":"two"}\n[{"op":"what"}]\n')],
]

test.each(damages)(
  'a repository whose record %s refuses everything until it is given up; the others are served',
  async (_, damage) => {
    const home = await pushedHome()
    await damage(journalOf(home, 'two'))
    for (let starts = 0; starts < 2; starts++) {
      const registry = await startTestRegistry({ home })
      await expectWhole(registry, 'one')
      await expectWhole(registry, 'team/three')

      for (const [method, path] of [
        ['GET', '/v2/two/manifests/v1'],
        ['HEAD', '/v2/two/manifests/v1'],
        ['GET', `/v2/two/blobs/${image.layers[0]}`],
        ['GET', '/v2/two/tags/list'],
        ['GET', `/v2/two/referrers/${image.digest}`],
        ['POST', '/v2/two/blobs/uploads/'],
        ['POST', `/v2/two/blobs/uploads/?mount=${image.layers[0]}&from=one`],
        ['DELETE', '/v2/two/manifests/v1'],
      ] as const)
        expect([method, path, (await registry.ask(method, path)).status]).toEqual([method, path, 500])
      const refused = await registry.pushManifest('two', 'v1', image)
      expect(refused.status).toBe(500)
      const { errors } = jsonOf<{ errors: { message: string }[] }>(refused)
      expect(errors[0]!.message).toContain('mirror registry rm two')

      const { damaged } = (await registry.status()).registry
      expect(damaged).toMatchObject([{ served: false }])
      expect(await stat(damaged![0]!.path)).toBeDefined()
      // Checks that a push to another repository may still name it as a source.
      expect((await registry.ask('POST', `/v2/one/blobs/uploads/?mount=${image.layers[0]}&from=two`)).status).toBe(201)
      // Checks that its blobs are kept, because the user may repair it.
      const collected = await registry.post('/api/registry/gc', { untagged: true, grace: 0, dryRun: false })
      expect(jsonOf(collected)).toMatchObject({ blobs: 0 })
      await registry.close()
    }

    const registry = await startTestRegistry({ home })
    const removed = await registry.post('/api/registry/rm', { names: ['two'], dryRun: false })
    expect(jsonOf(removed)).toMatchObject({ images: ['two'], unknown: [] })
    expect((await registry.get('/v2/two/manifests/v1')).status).toBe(404)
    expect((await registry.status()).registry).not.toHaveProperty('damaged')
    await registry.push('two', 'v1', image)
    await registry.push('two', 'v2', later)
    await registry.close()
    const again = await startTestRegistry({ home })
    for (const name of names) await expectWhole(again, name)
  },
)

test('a damaged record that is restored from a backup is served again after a restart', async () => {
  const home = await pushedHome()
  const path = journalOf(home, 'two')
  const backup = await readFile(path)
  await writeFile(path, 'nonsense')
  const registry = await startTestRegistry({ home })
  expect((await registry.get('/v2/two/manifests/v1')).status).toBe(500)
  const { original } = (await registry.status()).registry.damaged![0]!
  await registry.close()
  await writeFile(original, backup)
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
  expect((await again.status()).registry).not.toHaveProperty('damaged')
})

test('a repository whose record lost only its first line is whole again at the next request', async () => {
  const home = await pushedHome()
  const path = journalOf(home, 'two')
  await writeFile(path, (await readFile(path, 'utf8')).split('\n').with(0, '\0\0\0').join('\n'))
  const idle = await startTestRegistry({ home })
  expect((await idle.status()).registry.damaged).toMatchObject([{ served: false }])
  await idle.close()

  const registry = await startTestRegistry({ home })
  await expectWhole(registry, 'two')
  await registry.push('two', 'v3', image)
  await registry.close()
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
  expectContent(await again.get('/v2/two/manifests/v3'), image.digest)
  expect((await again.status()).registry).not.toHaveProperty('damaged')
})

test('a repository with a damaged line in the middle of its record keeps the rest, and the status says so', async () => {
  const home = await pushedHome()
  const path = journalOf(home, 'two')
  const lines = (await readFile(path, 'utf8')).split('\n')
  const at = lines.findIndex((line) => line.includes('"v2"'))
  await writeFile(path, lines.with(at, lines[at]!.slice(0, -5)).join('\n'))
  const registry = await startTestRegistry({ home })
  expectContent(await registry.get('/v2/two/manifests/v1'), image.digest)
  expect((await registry.get('/v2/two/manifests/v2')).status).toBe(404)
  const [report] = (await registry.status()).registry.damaged!
  expect(report).toMatchObject({ repository: 'two', served: true, reason: expect.stringContaining('1 damaged line') })
  expect(await readFile(report!.path, 'utf8')).toContain(lines[1])
  await registry.push('two', 'v2', later)
  await registry.close()
  await expectWhole(await startTestRegistry({ home }), 'two')
})

test('a record that a crash cut off loses only its last line, which was never acknowledged', async () => {
  const home = await pushedHome()
  await appendFile(journalOf(home, 'two'), '[{"op":"tag","tag":"v9","dig')
  const registry = await startTestRegistry({ home })
  for (const name of names) await expectWhole(registry, name)
  expect((await registry.status()).registry).not.toHaveProperty('damaged')
})

test('the content of a manifest is not in the record, and referrers and garbage collection know it after a restart', async () => {
  const home = await pushedHome()
  const registry = await startTestRegistry({ home })
  const annotations = { note: 'x'.repeat(1_000_000), ünï: '"\\\u2028' }
  const subject = { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length }
  const longType = `application/${'long'.repeat(200)}`
  const signature = makeImage({ seed: 5, manifest: { subject, annotations, artifactType: 'application/vnd.test' } })
  const odd = makeImage({ seed: 6, manifest: { subject, artifactType: longType } })
  for (let at = 0; at < 5; at++) await registry.push('one', `s${at}`, signature)
  await registry.push('one', 'odd', odd)
  const index = makeIndex([makeImage({ seed: 7 }), makeImage({ seed: 8 })])
  await registry.push('one', 'index', index)
  await registry.close()
  expect((await stat(journalOf(home, 'one'))).size).toBeLessThan(20_000)

  const again = await startTestRegistry({ home })
  const entries = async (query = '') =>
    jsonOf<{ manifests: Record<string, unknown>[] }>(await again.get(`/v2/one/referrers/${image.digest}${query}`))
      .manifests
  const listed = [
    {
      mediaType: signature.mediaType,
      digest: signature.digest,
      size: signature.bytes.length,
      artifactType: 'application/vnd.test',
      annotations,
    },
    { mediaType: odd.mediaType, digest: odd.digest, size: odd.bytes.length, artifactType: longType },
  ]
  expect(await entries()).toEqual(listed.toSorted((a, b) => (a.digest < b.digest ? -1 : 1)))
  expect(await entries('?artifactType=application/vnd.test')).toEqual(listed.slice(0, 1))
  expect(await entries(`?artifactType=${longType}`)).toEqual(listed.slice(1))

  const collect = () => again.post('/api/registry/gc', { untagged: true, grace: 0, dryRun: false })
  expect(jsonOf(await collect())).toMatchObject({ blobs: 0 })
  const wouldGo = await again.post('/api/registry/rm', { names: ['one:index'], dryRun: true })
  expect(jsonOf(wouldGo)).toMatchObject({ images: ['one:index'] })
  await again.post('/api/registry/rm', { names: ['one:index'], dryRun: false })
  expect((await again.get(`/v2/one/manifests/${[...index.manifests.keys()].at(-1)}`)).status).toBe(404)
  await expectWhole(again, 'one')
})

test('nothing of a repository is collected while a manifest that may need it cannot be read', async () => {
  const home = await pushedHome()
  const { digest } = image
  const blob = join(home, 'data', 'registry', 'v1', 'blobs', 'sha256', digest.slice('sha256:'.length))
  await writeFile(blob, 'damaged')
  const registry = await startTestRegistry({ home })
  const collected = await registry.post('/api/registry/gc', { untagged: true, grace: 0, dryRun: false })
  expect(jsonOf(collected)).toMatchObject({ blobs: 0 })
  for (const layer of image.blobs.keys()) expectContent(await registry.get(`/v2/one/blobs/${layer}`), layer)
})
