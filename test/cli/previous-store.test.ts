import { createHash } from 'node:crypto'
import { appendFile, mkdir, readFile, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { pushImage } from '../support/push.ts'
import { damagedOf, expectAll, expectAnswers, expected } from '../support/store-v1/compare.ts'
import {
  accounts,
  ask,
  commands,
  homeWithStores,
  readCounts,
  run,
  runJson,
  startOffline,
  stop,
  storeNames,
} from '../support/store-v1/fixture.ts'

const { alice } = expected.cache
const ofApp = / \/v2\/(app\/|_catalog)/
const ofHubApp = /docker\.io\/library\/app\/|_catalog\?ns=docker/

/** Returns the path of a journal of the registry; its name is a hash. */
const journalOf = (home: string, name: string) => recordOf(home, 'registry', name, 'jsonl')
/** Returns the path of a record of the cache. */
const cacheRecordOf = (home: string, name: string) => recordOf(home, 'cache', name, 'json')

/** Returns the path of a file in the store of this format. */
const movedPathOf = (path: string) => path.replace('/v1/', '/v2/')
/** Sets the time of a file to one after which nothing would stay in the quarantine. */
const makeOld = (path: string) => utimes(path, 1, 1)

function recordOf(home: string, store: string, name: string, ending: string): string {
  const hash = createHash('sha256').update(name).digest('hex')
  return join(home, 'data', store, 'v1', 'repositories', `${hash}.${ending}`)
}

describe('the store of the previous release', () => {
  test('gives the commands of a stopped mirror what it gave that release', async () => {
    const home = await homeWithStores()
    for (const command of commands)
      expect([command, await runJson(home, command)]).toEqual([command, expected.commands[command]])
  })

  test.each(accounts)('has every answer of the cache for the account %s', async (account) => {
    const mirror = await startOffline(await homeWithStores(), account)
    await expectAnswers(mirror.url, expected.cache[account])
  })

  test('has every answer of the registry, also after more starts', async () => {
    const home = await homeWithStores()
    for (let starts = 0; starts < 3; starts++) {
      const mirror = await startOffline(home)
      await expectAll(mirror)
      await stop(mirror)
    }
  })

  test('gives the commands the same while the server runs, and after it has stopped', async () => {
    const home = await homeWithStores()
    const mirror = await startOffline(home)
    for (const command of ['cache ls', 'cache verify', 'registry ls'])
      expect([command, await runJson(home, command)]).toEqual([command, expected.commands[command]])
    await stop(mirror)
    for (const command of commands)
      expect([command, await runJson(home, command)]).toEqual([command, expected.commands[command]])
  })

  test('that a crash has left, with temporary files and without its mark of a clean stop, has every answer', async () => {
    const home = await homeWithStores()
    for (const name of storeNames) {
      const folder = join(home, 'data', name, 'v1')
      await rm(join(folder, 'clean'))
      await mkdir(join(folder, 'tmp'), { recursive: true })
      for (const file of [
        'tmp/0123',
        '.running.json-0123',
        'repositories/.0123.json-0123',
        'repositories/.0123.jsonl-0123',
      ])
        await writeFile(join(folder, file), '{"format":')
    }
    const mirror = await startOffline(home)
    await expectAll(mirror)
    expect(await damagedOf(mirror)).toEqual([])
  })

  test('with a damaged blob has all but that blob, which a verification finds and moves aside', async () => {
    const home = await homeWithStores()
    const request = Object.keys(alice).find((name) => /GET .*library\/app\/blobs\/sha256/.test(name))!
    const digest = request.split('/').at(-1)!
    const path = join(home, 'data', 'cache', 'v1', 'blobs', ...digest.split(':'))
    await writeFile(path, (await readFile(path)).fill(0))
    const { checked } = expected.commands['cache verify'] as { checked: number }
    for (const command of ['cache verify --dry-run', 'cache verify']) {
      const { status, stdout } = await run(home, command)
      expect([command, status, JSON.parse(stdout)]).toMatchObject([command, 5, { checked, damaged: [digest] }])
    }
    expect(await runJson(home, 'cache verify')).toMatchObject({ checked: checked - 1, damaged: [] })
    const mirror = await startOffline(home)
    expect(await ask(mirror.url, request)).toMatchObject({ status: 503 })
    await expectAnswers(mirror.url, alice, new RegExp(digest))
  })

  test('counts later pulls on top of those that it has counted', async () => {
    const home = await homeWithStores()
    const mirror = await startOffline(home)
    const tag = '/v2/docker.io/library/app/manifests/v1'
    expect(await ask(mirror.url, `GET ${tag}`)).toEqual(alice[`GET ${tag}`])
    await stop(mirror)
    const pullsOf = (images: unknown) =>
      (images as { name: string; pulls: number }[]).find(({ name }) => name === 'docker.io/library/app:v1')!.pulls
    expect(pullsOf(await runJson(home, 'cache ls'))).toBe(pullsOf(expected.commands['cache ls']) + 1)
  })

  test('takes pushes and removals, which a restart keeps', async () => {
    const home = await homeWithStores()
    const image = makeImage({ seed: 99 })
    const mirror = await startOffline(home)
    await pushImage(mirror.registryUrl!, 'app', 'later', image)
    expect((await get(mirror.registryUrl!, '/v2/app/manifests/v2', { method: 'DELETE' })).status).toBe(202)
    await stop(mirror)
    const again = await startOffline(home)
    expect((await get(again.registryUrl!, '/v2/app/manifests/later')).headers['docker-content-digest']).toBe(
      image.digest,
    )
    expect(await ask(again.registryUrl!, 'GET /v2/app/tags/list')).toMatchObject({
      body: { name: 'app', tags: ['later', 'latest', 'multi', 'v1'].toSorted() },
    })
    await expectAnswers(again.registryUrl!, expected.registry, /manifests\/v2$|tags\/list/)
  })
})

describe('a journal of the previous release', () => {
  test('of format 1, with links and annotations in short and in long lines, has all of its content', async () => {
    const home = await homeWithStores()
    const path = journalOf(home, 'app')
    const [, ...lines] = (await readFile(path, 'utf8')).trimEnd().split('\n')
    const link = { kind: 'blob', mediaType: 'application/\u2028x', digest: `sha256:${'0'.repeat(64)}`, size: 1 }
    const older = lines.map((line, at) => {
      const changes = JSON.parse(line) as { op: string }[]
      // Exceed the bytes of a read with every third line.
      // U+2028 ends a line for some readers, and JSON may contain it.
      const annotations = { 'é"\\[{\u2028': `\\"]}ü\u2029${'x\\'.repeat(at % 3 === 0 ? 150_000 : 10)}` }
      return changes.map((change) =>
        change.op === 'manifest' ? { ...change, links: [link, link], annotations } : change,
      )
    })
    const texts = [{ format: 1, name: 'app' }, ...older].map((line) => `${JSON.stringify(line)}\n`)
    expect(Math.max(...texts.map(({ length }) => length))).toBeGreaterThan(256 * 1024)
    await writeFile(path, texts.join(''))
    expect(await runJson(home, 'registry ls')).toEqual(expected.commands['registry ls'])
    for (let starts = 0; starts < 2; starts++) {
      const mirror = await startOffline(home)
      await expectAll(mirror)
      expect(await damagedOf(mirror)).toEqual([])
      await stop(mirror)
    }
  })

  test('whose last line a crash has cut off lacks only the push of that line, and takes pushes', async () => {
    const home = await homeWithStores()
    const path = journalOf(home, 'app')
    const text = await readFile(path, 'utf8')
    const [last] = JSON.parse(text.trimEnd().split('\n').at(-1)!) as { op: string; digest: string }[]
    expect(last!.op).toBe('manifest')
    await truncate(path, text.length - 10)
    const image = makeImage({ seed: 98 })
    const mirror = await startOffline(home)
    await expectAnswers(mirror.registryUrl!, expected.registry, new RegExp(last!.digest))
    expect(await ask(mirror.registryUrl!, `GET /v2/app/manifests/${last!.digest}`)).toMatchObject({ status: 404 })
    expect(await damagedOf(mirror)).toEqual([])
    await pushImage(mirror.registryUrl!, 'app', 'v1', image)
    await stop(mirror)
    const again = await startOffline(home)
    await expectAnswers(again.registryUrl!, expected.registry, new RegExp(`${last!.digest}|manifests/v1$`))
    expect((await get(again.registryUrl!, '/v2/app/manifests/v1')).headers['docker-content-digest']).toBe(image.digest)
  })

  test('with a damaged line in its middle lacks only that line, which is kept and protects its content', async () => {
    const home = await homeWithStores()
    const path = journalOf(home, 'app')
    const lines = (await readFile(path, 'utf8')).split('\n')
    const at = lines.findIndex((line) => line.includes('"tag":"v2"'))
    const damaged = Buffer.from('5b7b226f70223a22746167222c00ff80c3', 'hex')
    const before = lines.slice(0, at).map((line) => `${line}\n`)
    const after = lines.slice(at + 1).map((line) => `\n${line}`)
    await writeFile(path, Buffer.concat([Buffer.from(before.join('')), damaged, Buffer.from(after.join(''))]))
    await makeOld(path)
    const listed = await run(home, 'registry ls')
    expect([listed.status, listed.stderr]).toEqual([0, expect.stringContaining('1 damaged line was skipped')])
    const mirror = await startOffline(home)
    await expectAnswers(mirror.registryUrl!, expected.registry, /manifests\/v2$|tags\/list/)
    expect(await ask(mirror.registryUrl!, 'HEAD /v2/app/manifests/v2')).toMatchObject({ status: 404 })
    const { storage } = await mirror.status()
    const [report] = await damagedOf(mirror)
    expect(report).toMatchObject({ repository: 'app', served: true, original: movedPathOf(path) })
    const kept = await readFile(report!.path)
    expect(kept.includes(damaged)).toBe(true)
    expect(kept.length).toBeLessThan(damaged.length + 50)
    await stop(mirror)
    for (let starts = 0; starts < 2; starts++) {
      // It forgets content, but takes no bytes, because a lost line may have named them.
      expect(await runJson(home, 'registry gc --untagged --grace 0s')).toMatchObject({ blobs: 0 })
      const again = await startOffline(home)
      await expect.poll(async () => (await again.status()).storage.pushedBytes).toBe(storage.pushedBytes)
      expect(await damagedOf(again)).toEqual([report])
      await stop(again)
    }
    expect(await readFile(report!.path)).toEqual(kept)
  })

  test.each<[string, (bytes: Buffer) => Buffer]>([
    ['is rubbish', () => Buffer.alloc(5000, 0xa5)],
    ['is empty', () => Buffer.alloc(0)],
    ['has a newer format', () => Buffer.from('{"format":99,"name":"app"}\n[{"op":"what"}]\n')],
    ['has a damaged first line', (bytes) => Buffer.concat([Buffer.from('\0\0\0'), bytes.subarray(3)])],
    ['has the name of another repository', (bytes) => Buffer.from(bytes.toString().replace('"app"', '"apq"'))],
  ])(
    'that %s is kept for a week, its repository is unknown and accepts pushes, and the others work',
    async (_, damage) => {
      const home = await homeWithStores()
      const journal = journalOf(home, 'app')
      const bytes = damage(await readFile(journal))
      await writeFile(journal, bytes)
      await makeOld(journal)
      const listed = await run(home, 'registry ls')
      expect([listed.status, listed.stderr]).toEqual([0, expect.stringContaining(`${journal}: it cannot be read`)])
      const image = makeImage({ seed: 96 })
      let kept: string | undefined
      let pushedBytes = 0
      for (let starts = 0; starts < 3; starts++) {
        const mirror = await startOffline(home)
        await expectAnswers(mirror.url, alice)
        await expectAnswers(mirror.registryUrl!, expected.registry, ofApp)
        if (starts === 0) {
          for (const request of ['GET /v2/app/tags/list', 'HEAD /v2/app/manifests/v1', 'DELETE /v2/app/manifests/v1'])
            expect([request, (await ask(mirror.registryUrl!, request)).status]).toEqual([request, 404])
          await pushImage(mirror.registryUrl!, 'app', 'v1', image)
          pushedBytes = (await mirror.status()).storage.pushedBytes
        }
        const pushed = await get(mirror.registryUrl!, '/v2/app/manifests/v1')
        expect(pushed.headers['docker-content-digest']).toBe(image.digest)
        expect(await ask(mirror.registryUrl!, 'GET /v2/app/tags/list')).toMatchObject({ body: { tags: ['v1'] } })
        expect((await mirror.status()).storage.pushedBytes).toBe(pushedBytes)
        const [report, ...more] = await damagedOf(mirror)
        expect(more).toEqual([])
        expect(report).toMatchObject({ served: false, reason: expect.stringContaining('cannot be read') as string })
        expect(report!.repository).toBeUndefined()
        expect(report!.original).toBe(movedPathOf(journal))
        kept ??= report!.path
        expect(report!.path).toBe(kept)
        expect(await readFile(kept)).toEqual(bytes)
        await stop(mirror)
        expect((await run(home, 'registry ls')).stderr).toContain(`${kept}: it cannot be read`)
      }
      expect(await runJson(home, 'registry gc --untagged --grace 0s')).toMatchObject({ blobs: 0 })
      const weekAgo = new Date(Date.now() - 8 * 24 * 3_600_000)
      await utimes(kept!, weekAgo, weekAgo)
      const mirror = await startOffline(home)
      expect(await damagedOf(mirror)).toEqual([])
      await stop(mirror)
      expect(await runJson(home, 'registry gc --grace 0s')).not.toMatchObject({ blobs: 0 })
    },
  )
})

describe('a cache record of the previous release', () => {
  test.each<[string, (path: string) => Promise<void>]>([
    ['is rubbish', (path) => writeFile(path, Buffer.alloc(5000, 0xa5))],
    ['is cut off', async (path) => truncate(path, (await readFile(path)).length - 1)],
    ['is empty', (path) => truncate(path, 0)],
    ['has bytes behind its end', (path) => appendFile(path, '{}')],
    [
      'has a newer format',
      async (path) => writeFile(path, (await readFile(path, 'utf8')).replace('"format":1', '"format":99')),
    ],
    [
      'has the name of another repository',
      async (path) => writeFile(path, (await readFile(path, 'utf8')).replace('library/app', 'library/other')),
    ],
  ])('that %s counts as absent, and the other repositories keep their content', async (_, damage) => {
    const home = await homeWithStores()
    await damage(cacheRecordOf(home, 'docker.io/library/app'))
    for (let starts = 0; starts < 2; starts++) {
      const mirror = await startOffline(home)
      await expectAnswers(mirror.url, alice, ofHubApp)
      await expectAnswers(mirror.registryUrl!, expected.registry)
      expect(await ask(mirror.url, 'HEAD /v2/docker.io/library/app/manifests/v1')).toMatchObject({ status: 503 })
      expect(await ask(mirror.url, 'HEAD /v2/docker.io/library/other/manifests/v1')).toMatchObject({ status: 503 })
      await stop(mirror)
    }
  })

  test('of an earlier version, without referrers and with a foreign layer, keeps its content', async () => {
    const home = await homeWithStores()
    const path = cacheRecordOf(home, 'docker.io/library/app')
    const { referrers, ...record } = JSON.parse(await readFile(path, 'utf8')) as {
      referrers: unknown[]
      manifests: { links: object[] }[]
    }
    expect(referrers.length).toBeGreaterThan(0)
    const mediaType = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'
    const digest = `sha256:${'0'.repeat(64)}`
    for (const { links } of record.manifests) links.push({ kind: 'blob', mediaType, digest, size: 1 })
    await writeFile(path, JSON.stringify(record))
    const mirror = await startOffline(home)
    await expectAnswers(mirror.url, alice, /library\/app\/referrers/)
  })
})

describe('a store folder', () => {
  test.each(storeNames)('%s of a newer format is refused with the reason, and nothing changes', async (name) => {
    const home = await homeWithStores()
    await mkdir(join(home, 'data', name, 'v99'))
    await expect(startOffline(home)).rejects.toThrow(`A newer version of mirror wrote the store at`)
    const { status, stderr } = await run(home, `${name} ls`)
    expect([status, stderr]).toEqual([2, expect.stringContaining('(format v99)')])
    await rm(join(home, 'data', name, 'v99'), { recursive: true })
    await expectAll(await startOffline(home))
  })

  test.each([
    ['without a file', []],
    ['with its empty folders', ['blobs/sha256', 'blobs/sha512', 'tmp', 'repositories', 'quarantine']],
  ])('of the previous release %s is an empty store', async (_, folders) => {
    const home = await homeWithStores([])
    for (const name of storeNames)
      for (const folder of ['.', ...folders]) await mkdir(join(home, 'data', name, 'v1', folder), { recursive: true })
    expect([await runJson(home, 'cache ls'), await runJson(home, 'registry ls')]).toEqual([[], []])
    for (let starts = 0; starts < 2; starts++) {
      const mirror = await startOffline(home)
      expect(await ask(mirror.registryUrl!, 'GET /v2/_catalog')).toMatchObject({ body: { repositories: [] } })
      expect(await readCounts(mirror)).toEqual({
        storage: { bytes: 0, blobs: 0, manifests: 0 },
        registry: { repositories: 0, tags: 0, manifests: 0, bytes: 0 },
      })
      await stop(mirror)
    }
  })
})
