import { appendFile, mkdir, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { countDamagedLines, formatLine } from '../../../src/metadata/log.ts'
import type { Operation } from '../../../src/metadata/metadata.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import { readMetadata } from '../../../src/metadata/open-metadata.ts'
import { packLinks } from '../../../src/metadata/operations.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { damageLog, listLog, openMetadata, withMetadata } from '../../support/metadata-log.ts'
import { bytesOf, temporaryFolder } from '../../support/store/store.ts'

const digest = computeDigest(bytesOf('m'))

function tag(name: string): Operation {
  return { op: 'tag', tag: name, digest, identity: anonymousIdentity, updatedAt: 1, pulls: 0, lastPulled: 0 }
}

const folderOf = (root: string) => join(root, 'metadata')
const commit = (store: MetadataStore, tags: string[], name = 'app') =>
  store.commit({ host: '', name }, tags.map(tag), 'durable')
const tagsOf = (store: MetadataStore, name = 'app') => [...(store.get('', name)?.tags.keys() ?? [])].toSorted()
const keptFiles = (root: string) => readdir(join(root, 'aside')).catch((): string[] => [])

/** Creates a log with a commit for each of these tags. */
async function makeLog(tags: string[]): Promise<string> {
  const root = await temporaryFolder()
  await withMetadata(root, async (store) => {
    for (const name of tags) await commit(store, [name])
  })
  return root
}

/** Makes the log consist of a checkpoint, and a segment without a commit. */
async function makeCheckpoint(tags: string[]): Promise<string> {
  const root = await makeLog([...tags, 'lost'])
  await damageLog(folderOf(root), (text) => text.replace('"lost"', '"l0st"'))
  await withMetadata(root, async () => {})
  await rm(join(root, 'aside'), { recursive: true })
  expect((await listLog(folderOf(root))).map((path) => path.replace(/^.*\./, ''))).toEqual(['checkpoint', 'log'])
  return root
}

describe('a log', () => {
  test.each([1, 10, 40])('whose last line lacks %i bytes loses only that line, and takes commits', async (torn) => {
    const root = await temporaryFolder()
    await withMetadata(root, async (store) => {
      await commit(store, ['v1'])
      await commit(store, ['v2', 'v3'])
    })
    const [path] = await listLog(folderOf(root))
    await truncate(path!, (await readFile(path!)).length - torn)
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v1'])
      expect(store.damage).toEqual([])
      await commit(store, ['v4'])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v4']))
    expect(await keptFiles(root)).toEqual([])
  })

  test('with garbage at its end or in its middle keeps the other lines', async () => {
    const root = await makeLog(['v1'])
    await appendFile((await listLog(folderOf(root)))[0]!, '\0\0\0\n[{"op":"tag"}]\n')
    await withMetadata(root, async (store) => {
      await commit(store, ['v2'])
      expect(tagsOf(store)).toEqual(['v1', 'v2'])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2']))
  })

  test.each([
    ['first', 1],
    ['middle', 2],
    ['last', 3],
  ])('whose %s line is damaged keeps the others, and a copy of that line once', async (_, at) => {
    const root = await makeLog(['v0', 'v1', 'v2'])
    let line = ''
    const path = await damageLog(folderOf(root), (text) => {
      line = text.split('\n')[at]!.replace('"v', '"w')
      return text.split('\n').with(at, line).join('\n')
    })
    const kept = ['v0', 'v1', 'v2'].toSpliced(at - 1, 1)
    for (let starts = 0; starts < 3; starts++)
      await withMetadata(root, async (store) => {
        expect(tagsOf(store)).toEqual(kept)
        expect(store.hasUnkeptDamage).toBe(false)
        const [aside, ...others] = await keptFiles(root)
        expect(others).toEqual([])
        expect(aside).toContain(path.slice(path.lastIndexOf('/') + 1))
        expect(await readFile(join(root, 'aside', aside!), 'utf8')).toBe(`${line}\n`)
        expect(await countDamagedLines(join(root, 'aside', aside!))).toEqual(new Map([['/app', 1]]))
      })
  })

  test('whose line feeds are damaged loses no commit', async () => {
    const root = await makeLog(['v1', 'v2', 'v3'])
    await damageLog(folderOf(root), (text) => text.replaceAll('\n', '\0'))
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2', 'v3']))
  })

  test('whose line feeds are damaged, and whose last line is torn, takes commits', async () => {
    const root = await makeLog(['v1', 'v2', 'v3'])
    await damageLog(folderOf(root), (text) => text.slice(0, -1).replaceAll('\n', '\0'))
    await withMetadata(root, (store) => commit(store, ['v4']))
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2', 'v4']))
  })

  test('with a line that this version does not understand keeps a copy of it, with the repository', async () => {
    const root = await makeLog(['v1'])
    const line = formatLine({ sequence: 2, repository: '/app', operations: '[["what"]]' })
    await appendFile((await listLog(folderOf(root)))[0]!, line)
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1']))
    const [aside] = await keptFiles(root)
    expect(aside).toMatch(/^\d{16}\.log-/)
    expect(await readFile(join(root, 'aside', aside!), 'utf8')).toBe(line)
    expect(await countDamagedLines(join(root, 'aside', aside!))).toEqual(new Map([['/app', 1]]))
  })

  test('that lacks commits without a trace says so', async () => {
    const root = await makeLog(['v1', 'v2', 'v3'])
    await damageLog(folderOf(root), (text) => text.split('\n').toSpliced(2, 1).join('\n'))
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v1', 'v3'])
      expect(store.damage).toHaveLength(1)
    })
    const [aside] = await keptFiles(root)
    expect(await countDamagedLines(join(root, 'aside', aside!))).toEqual(new Map([[undefined, 1]]))
  })

  test.each([0, 1, 10])('that was cut off after %i bytes says so', async (length) => {
    const root = await makeLog(['v1', 'v2'])
    await truncate((await listLog(folderOf(root)))[0]!, length)
    await withMetadata(root, async (store) => {
      expect(store.damage).toHaveLength(1)
      await commit(store, ['v3'])
    })
    expect(await keptFiles(root)).toHaveLength(1)
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage]).toEqual([['v3'], []]))
  })

  test('whose start is damaged loses no commit', async () => {
    const root = await makeLog(['v1', 'v2'])
    await damageLog(folderOf(root), (text) => text.replace(' - ', ' _ '))
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v1', 'v2']))
  })

  test.each([
    ['checkpoint', ['v3']],
    ['segment', ['v1', 'v2']],
  ])('whose %s is gone says so', async (type, kept) => {
    const root = await makeCheckpoint(['v1', 'v2'])
    await withMetadata(root, (store) => commit(store, ['v3']))
    await rm((await listLog(folderOf(root)))[type === 'checkpoint' ? 0 : 1]!)
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(kept)
      expect(store.damage).toHaveLength(1)
    })
    expect(await keptFiles(root)).toHaveLength(1)
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage]).toEqual([kept, []]))
  })

  test.each(['the folder', 'its files'])('that is gone beside content says so: %s', async (what) => {
    const root = await makeLog(['v1'])
    if (what === 'the folder') await rm(folderOf(root), { recursive: true })
    else for (const path of await listLog(folderOf(root))) await rm(path)
    const isNew = async () => false
    const store = await openMetadata(root, { isNew })
    expect([tagsOf(store), store.damage.length]).toEqual([[], 1])
    await commit(store, ['v2'])
    await store.close()
    expect(await keptFiles(root)).toEqual([expect.stringMatching(/^0{15}1\.log-/)])
    const again = await openMetadata(root, { isNew })
    expect([tagsOf(again), again.damage]).toEqual([['v2'], []])
  })

  test('that is gone beside content says so until this could be noted', async () => {
    const root = await temporaryFolder()
    await writeFile(join(root, 'aside'), '')
    for (let starts = 0; starts < 3; starts++) {
      const store = await openMetadata(root, { isNew: async () => false })
      expect([store.damage.length, store.hasUnkeptDamage]).toEqual([1, true])
      await commit(store, ['v1'])
      await store.close()
    }
    await rm(join(root, 'aside'))
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage.length]).toEqual([['v1'], 1]))
    expect(await keptFiles(root)).toHaveLength(1)
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage]).toEqual([['v1'], []]))
  })

  test('of a new store is there before its first content', async () => {
    const root = await temporaryFolder()
    await withMetadata(root, async () => {})
    const store = await openMetadata(root, { isNew: async () => false })
    expect(store.damage).toEqual([])
  })

  test('that a crash has left without a commit is intact', async () => {
    const root = await makeLog(['v1'])
    const [path] = await listLog(folderOf(root))
    await truncate(path!, (await readFile(path!, 'utf8')).indexOf('\n') + 1)
    await withMetadata(root, async (store) => {
      expect(store.damage).toEqual([])
      await commit(store, ['v2'])
    })
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v2']))
  })

  test('with a damaged checkpoint keeps its other lines and the commits after it', async () => {
    const root = await makeCheckpoint(['v1', 'v2'])
    await withMetadata(root, (store) => commit(store, ['v3']))
    const path = await damageLog(folderOf(root), (text) => text.replace('"v1"', '"w1"'))
    expect(path).toMatch(/\.checkpoint$/)
    await withMetadata(root, async (store) => expect(tagsOf(store)).toEqual(['v2', 'v3']))
    expect(await keptFiles(root)).toEqual([expect.stringMatching(/^\d{16}\.checkpoint-/)])
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage]).toEqual([['v2', 'v3'], []]))
  })

  test('whose checkpoint was cut off says so', async () => {
    const root = await makeCheckpoint(['v1', 'v2'])
    await damageLog(folderOf(root), (text) => `${text.split('\n')[0]}\n`)
    await withMetadata(root, async (store) => {
      expect(tagsOf(store)).toEqual(['v1'])
      expect(store.damage).toHaveLength(1)
    })
    expect(await keptFiles(root)).toHaveLength(1)
  })

  describe.each(['the folder', 'the checkpoint', 'the segment'])('of which a running mirror loses %s', (what) => {
    test.each([
      ['the next commit', ['v3'], ['v1', 'v2', 'v3']],
      ['the stop', [], ['v1', 'v2']],
    ])('is written again by %s', async (_, tags, kept) => {
      const root = await makeCheckpoint(['v1', 'v2'])
      const store = await openMetadata(root, { isNew: async () => false })
      const [checkpoint, segment] = await listLog(folderOf(root))
      if (what === 'the folder') await rm(folderOf(root), { recursive: true })
      else await rm(what === 'the checkpoint' ? checkpoint! : segment!)
      if (tags.length > 0) await commit(store, tags)
      await store.close()
      await withMetadata(root, async (again) => expect([tagsOf(again), again.damage]).toEqual([kept, []]))
    })
  })

  test('that was deleted with all content stays deleted when the mirror stops', async () => {
    const root = await makeLog(['v1'])
    await withMetadata(root, () => rm(folderOf(root), { recursive: true }))
    await withMetadata(root, async (store) => expect([tagsOf(store), store.damage]).toEqual([[], []]))
  })

  test('keeps damaged lines in place while they cannot be copied, also when it becomes large', async () => {
    const root = await makeLog(['v1', 'v2'])
    const path = await damageLog(folderOf(root), (text) => text.replace('"v1"', '"w1"'))
    await writeFile(join(root, 'aside'), '')
    const store = await openMetadata(root)
    expect(tagsOf(store)).toEqual(['v2'])
    expect(store.hasUnkeptDamage).toBe(true)
    const names = Array.from({ length: 3000 }, (_, at) => `${'t'.repeat(100)}${at}`)
    for (let round = 0; round < 4; round++) await commit(store, names)
    await store.close()
    expect(await readFile(path, 'utf8')).toContain('"w1"')
    await rm(join(root, 'aside'))
    await withMetadata(root, async (again) => expect(again.hasUnkeptDamage).toBe(false))
    expect(await keptFiles(root)).toHaveLength(1)
    await withMetadata(root, async (again) => expect(again.damage).toEqual([]))
  })
})

test('a flipped bit in any byte costs at most its line, and is reported', async () => {
  const tags = ['v1', 'v2', 'v3']
  const root = await makeLog(tags)
  const [path] = await listLog(folderOf(root))
  const whole = await readFile(path!)
  for (const [at, byte] of whole.entries()) {
    await rm(folderOf(root), { recursive: true })
    await mkdir(folderOf(root))
    await writeFile(path!, Buffer.from(whole).fill(byte ^ 1, at, at + 1))
    await withMetadata(root, async (store) => {
      const lost = tags.length - tagsOf(store).length
      // The length of a line still finds the next one.
      const isLineFeed = byte === 0x0a
      expect([lost < (isLineFeed ? 1 : 2), store.damage.length], `byte ${at}`).toEqual([true, isLineFeed ? 0 : 1])
    })
  }
})

test('a damaged line of one repository leaves the others as they are', async () => {
  const root = await temporaryFolder()
  await withMetadata(root, async (store) => {
    await commit(store, ['v1'], 'app')
    await commit(store, ['v1'], 'team/other')
    await commit(store, ['v2'], 'app')
  })
  await damageLog(folderOf(root), (text) => text.replace('/team/other [["tag","v1"', '/team/other [["tag","w1"'))
  await withMetadata(root, async (store) => {
    expect([tagsOf(store), tagsOf(store, 'team/other')]).toEqual([['v1', 'v2'], []])
    expect(store.damage.map(({ repository }) => repository)).toEqual(['/team/other'])
  })
})

test('reading a log changes nothing on the disk', async () => {
  const root = await makeLog(['v1', 'v2'])
  await damageLog(folderOf(root), (text) => text.replace('"v1"', '"w1"'))
  const files = async () => Promise.all((await listLog(folderOf(root))).map((path) => readFile(path, 'utf8')))
  const before = await files()
  const setAside = () => join(root, 'aside')
  const read = await readMetadata({
    folder: folderOf(root),
    previousFolder: join(root, 'repositories'),
    isNew: async () => true,
    setAside,
    logger: silentLogger,
    clock: systemClock,
  })
  expect(tagsOf(read)).toEqual(['v2'])
  expect(await files()).toEqual(before)
  expect(await readdir(root)).toEqual(['metadata'])
})

test.each([
  ['links of a wrong length', (bytes: Buffer) => bytes.subarray(1)],
  ['a link of an unknown media type', (bytes: Buffer) => Buffer.from(bytes).fill(9, 1, 2)],
])('a line with a right checksum and %s is damaged, and the others count', async (_, change) => {
  const root = await makeLog(['v1', 'v2'])

  const { types, bytes } = packLinks([{ kind: 'blob', mediaType: 'l/t', size: 1, digest }])
  const manifest = [
    'manifest',
    digest,
    'm/t',
    1,
    'anonymous',
    0,
    0,
    0,
    0,
    [types, change(Buffer.from(bytes)).toString('base64')],
  ]
  const operations = JSON.stringify([manifest])
  await appendFile((await listLog(folderOf(root))).at(-1)!, formatLine({ sequence: 3, repository: '/app', operations }))
  const store = await openMetadata(root)
  expect(tagsOf(store)).toEqual(['v1', 'v2'])
  expect(store.damage.map(({ repository }) => repository)).toEqual(['/app'])
})
