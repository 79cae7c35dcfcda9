import { cp, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate, setTimeout } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { createSystemError } from '../../../src/lib/errors.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import type { Operation } from '../../../src/metadata/metadata.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity } from '../../../src/oci/registry.ts'
import { openMetadata, withMetadata } from '../../support/metadata-log.ts'
import { bytesOf, temporaryFolder } from '../../support/store/store.ts'

const forMs = 4000
const digests = ['a', 'b', 'c'].map((text) => computeDigest(bytesOf(text)))

/** Creates a generator of reproducible numbers below a limit. */
function createRandom(seed: number): (limit: number) => number {
  let state = seed
  return (limit) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    return (state >>> 8) % limit
  }
}

/** Lets syncs take a moment, and fail at random while `isFailing` says so. */
async function slowDownSyncs(random: (limit: number) => number, isFailing: () => boolean): Promise<void> {
  const file = await open('.')
  const prototype = Object.getPrototypeOf(file) as typeof file
  await file.close()
  const { datasync } = prototype
  prototype.datasync = async function () {
    await setTimeout(random(4))
    if (isFailing() && random(3) === 0) throw createSystemError('EIO', 'fdatasync', 'the disk fails')
    return datasync.call(this)
  }
  onTestFinished(() => void (prototype.datasync = datasync))
}

function describeState(store: MetadataStore) {
  return Object.fromEntries(
    Array.from(store.all(), ({ name, tags, manifests, blobs }) => [
      name,
      [tags, manifests, blobs].map((entries) => Object.fromEntries(entries as ReadonlyMap<string, unknown>)),
    ]),
  )
}

/** Copies a log as a crash would leave it, which may happen while a checkpoint replaces its files. */
async function copyLog(root: string): Promise<string> {
  const copy = await temporaryFolder()
  for (let attempt = 0; ; attempt++) {
    try {
      await cp(join(root, 'metadata'), join(copy, 'metadata'), { recursive: true })
      return copy
    } catch (error) {
      if (attempt === 10) throw error
      await rm(join(copy, 'metadata'), { recursive: true, force: true })
    }
  }
}

test('random commits, refusals and checkpoints leave the same state in memory and on the disk', async () => {
  const seed = Math.floor(Math.random() * 1e9)
  const random = createRandom(seed)
  let isFailing = false
  await slowDownSyncs(random, () => isFailing)
  const createOperations = (store: MetadataStore, name: string, time: number): Operation[] => {
    const [tag, digest] = [`t${random(3)}`, digests[random(3)]!]
    const known = { identity: anonymousIdentity, updatedAt: time, pulls: 0, lastPulled: 0 }
    const current = store.get('', name)?.tags.get(tag)?.updatedAt
    const choices: Operation[][] = [
      [{ op: 'tag', tag, digest, ...known }],
      [{ op: 'untag', tag }],
      [{ op: 'untag', tag, ...(current !== undefined && { updatedAt: current }) }],
      [{ op: 'manifest', digest, mediaType: 'm/t', size: 1, usedAt: 1, ...known }],
      [{ op: 'drop-manifest', digest }],
      [
        { op: 'blob', digest, size: time, identity: anonymousIdentity, usedAt: 1 },
        { op: 'drop-blob', digest: digests[random(3)]! },
      ],
    ]
    return choices[random(choices.length)]!
  }
  for (const until = performance.now() + forMs; performance.now() < until;) {
    const root = await temporaryFolder()
    const store = await openMetadata(root)
    for (let step = 0; step < 4; step++) {
      isFailing = random(2) === 0
      const commits: Promise<unknown>[] = []
      for (let at = 0; at < 12; at++) {
        const name = `r${random(2)}`
        if (random(6) === 0) store.requestCheckpoint()
        const operations = createOperations(store, name, step * 12 + at + 1)
        commits.push(store.commit({ host: '', name }, operations, 'durable').catch(() => {}))
        await (random(3) === 0 ? setTimeout(random(3)) : setImmediate())
      }
      await Promise.all(commits)
      isFailing = false
      const expected = describeState(store)
      for (const digest of digests) {
        const isHeld = [...store.all()].some(({ manifests, blobs }) => manifests.has(digest) || blobs.has(digest))
        expect(store.isHeld(digest), `seed ${seed}`).toBe(isHeld)
      }
      await withMetadata(await copyLog(root), async (again) => {
        expect(again.damage, `seed ${seed}`).toEqual([])
        expect(describeState(again), `seed ${seed}`).toEqual(expected)
      })
    }
    await store.close()
    const last = describeState(store)
    await withMetadata(root, async (again) => expect(describeState(again), `seed ${seed}`).toEqual(last))
  }
})
