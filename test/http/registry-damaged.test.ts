import { appendFile, cp, mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { makeImage, makeIndex } from '../support/images.ts'
import { damageLog, findRegistryStore, listLog } from '../support/metadata-log.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

const names = ['one', 'two', 'team/three']
const image = makeImage({ manifest: { annotations: { 'org.example': 'kept' } } })
const later = makeImage({ seed: 1 })

const logOf = (home: string) => findRegistryStore(home).logFolder

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

/** Damages the line that sets the tag v2 of the repository `two`; returns the damaged line. */
async function damageLine(home: string): Promise<string> {
  let damaged = ''
  await damageLog(logOf(home), (text) => {
    const lines = text.split('\n')
    const at = lines.findIndex((line) => line.includes(' /two ') && line.includes('"v2"'))
    damaged = lines[at]!.slice(0, -5)
    return lines.with(at, damaged).join('\n')
  })
  return damaged
}

test('a registry whose record is rubbish starts, says so, deletes nothing, and takes the images again', async () => {
  const home = await pushedHome()
  for (const path of await listLog(logOf(home))) await writeFile(path, Buffer.alloc(5000, '\xa5\xa5\n', 'latin1'))
  for (let starts = 0; starts < 2; starts++) {
    const registry = await startTestRegistry({ home })
    expect((await registry.get('/v2/two/manifests/v1')).status).toBe(404)
    const { damaged } = (await registry.status()).registry
    expect(damaged).toMatchObject([{ served: true, reason: expect.stringContaining('push the missing images again') }])
    expect(await stat(damaged![0]!.path)).toBeDefined()
    // Checks that the blobs are kept, because the user may repair the record.
    const collected = await registry.post('/api/registry/gc', { untagged: true, grace: 0, dryRun: false })
    expect(jsonOf(collected)).toMatchObject({ blobs: 0 })
    expect((await registry.status()).storage.pushedBytes).toBeGreaterThan(0)
    await registry.close()
  }
  const registry = await startTestRegistry({ home })
  for (const name of names) {
    await registry.push(name, 'v1', image)
    await registry.push(name, 'v2', later)
  }
  await registry.close()
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
})

test('a registry whose record cannot be read does not start, and keeps everything until it can', async () => {
  const home = await pushedHome()
  const [path] = await listLog(logOf(home))
  await rename(path!, `${home}/kept`)
  await mkdir(path!)
  await expect(startTestRegistry({ home })).rejects.toThrow()
  await rm(path!, { recursive: true })
  await rename(`${home}/kept`, path!)
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
})

test('a damaged record that is restored from a backup is served again after a restart', async () => {
  const home = await pushedHome()
  await cp(logOf(home), `${home}/backup`, { recursive: true })
  await damageLine(home)
  const registry = await startTestRegistry({ home })
  expect((await registry.get('/v2/two/manifests/v2')).status).toBe(404)
  const { original } = (await registry.status()).registry.damaged![0]!
  expect(dirname(original)).toBe(logOf(home))
  await registry.close()
  await rm(logOf(home), { recursive: true })
  await cp(`${home}/backup`, logOf(home), { recursive: true })
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
})

test('a repository with a damaged line in the middle of its record keeps the rest, and the status says so', async () => {
  const home = await pushedHome()
  const damaged = await damageLine(home)
  const registry = await startTestRegistry({ home })
  for (const name of ['one', 'team/three']) await expectWhole(registry, name)
  expectContent(await registry.get('/v2/two/manifests/v1'), image.digest)
  expect((await registry.get('/v2/two/manifests/v2')).status).toBe(404)
  const [report, ...others] = (await registry.status()).registry.damaged!
  expect(others).toEqual([])
  expect(report).toMatchObject({ repository: 'two', served: true, reason: expect.stringContaining('1 damaged line') })
  expect(await readFile(report!.path, 'utf8')).toContain(damaged)
  await registry.push('two', 'v2', later)
  await registry.close()
  const again = await startTestRegistry({ home })
  await expectWhole(again, 'two')
  expect((await again.status()).registry.damaged).toEqual([report])
})

test('a repository with a damaged line is removed by name, and its copy protects the content', async () => {
  const home = await pushedHome()
  await damageLine(home)
  const registry = await startTestRegistry({ home })
  const removed = await registry.post('/api/registry/rm', { names: ['two'], dryRun: false })
  expect(jsonOf(removed)).toMatchObject({ images: ['two:v1'], unknown: [], blobs: 0 })
  expect((await registry.get('/v2/two/manifests/v1')).status).toBe(404)
  await registry.push('two', 'v1', image)
  await registry.push('two', 'v2', later)
  await registry.close()
  const again = await startTestRegistry({ home })
  for (const name of names) await expectWhole(again, name)
})

test('a record that a crash cut off loses only its last line, which was never acknowledged', async () => {
  const home = await pushedHome()
  await appendFile((await listLog(logOf(home))).at(-1)!, '01234567 99 30 /two [["tag","v9","dig')
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
  for (const path of await listLog(logOf(home))) expect((await stat(path)).size).toBeLessThan(20_000)

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
  await writeFile(findRegistryStore(home).layout.blob(image.digest), 'damaged')
  const registry = await startTestRegistry({ home })
  const collected = await registry.post('/api/registry/gc', { untagged: true, grace: 0, dryRun: false })
  expect(jsonOf(collected)).toMatchObject({ blobs: 0 })
  for (const layer of image.blobs.keys()) expectContent(await registry.get(`/v2/one/blobs/${layer}`), layer)
})
