// Measures the mirror with little memory.
import { makeBlob } from './content.js'
import {
  MB,
  MiB,
  afterwards,
  annotated,
  note,
  peak,
  pushBlob,
  pushManifest,
  tally,
  times,
  withMirror,
} from './measuring.js'
import { findMemoryGroups, MemoryGroup } from './memory-group.js'
import { request } from './request.js'

/** Actions of clients by name; each returns its outcomes. @type {[string, (mirror: any, upstreams: any) => Promise<any[]>][]} */
const floods = [
  [
    'all blobs of 100 cold images at once',
    async (mirror, upstreams) => {
      const urls = Array.from({ length: 100 }, () => upstreams.publish()).flatMap(({ registry, name, image }) =>
        image.blobs.map(({ digest }) => `${mirror.cacheUrl}/v2/${registry}/${name}/blobs/${digest}`),
      )
      return Promise.all(urls.map((url) => request(url)))
    },
  ],
  [
    '100 clients pull a held blob of 60 MB',
    async (mirror) => {
      const blob = makeBlob(60 * MB, 999)
      await pushBlob(mirror, blob)
      return times(100, () => request(`${mirror.registryUrl}/v2/limits/app/blobs/${blob.digest}`))
    },
  ],
  ['100 pushes of a blob of 3 MB at once', (mirror) => times(100, (at) => pushBlob(mirror, makeBlob(3 * MB, at)))],
  [
    '300 pushes of a manifest of 4.1 MB at once',
    (mirror) => times(300, (at) => pushManifest(mirror, annotated(4.1 * MB, at))),
  ],
]

/** @param {number} mebibytes */
export async function measureMemory(mebibytes) {
  const where = `${mebibytes} MiB of memory`
  for (const [what, act] of floods)
    await withLimit(mebibytes, async (mirror, upstreams) => {
      const outcomes = await act(mirror, upstreams)
      const figure = `${tally(outcomes)}; ${peak(mirror)}; ${await afterwards(mirror)}`
      note(`${where}, ${what}`, 'the process lives on', figure)
    })
  await withLimit(mebibytes, async (mirror) => {
    const outcomes = []
    for (let at = 0; at < 150; at++) outcomes.push(await pushManifest(mirror, annotated(4 * MB, at)))
    const before = peak(mirror)
    await mirror.stop()
    mirror.slowestStartMs = 0
    mirror.peakBytes = 0
    await mirror.start()
    const there = []
    for (let at = 0; at < 150; at += 10)
      there.push(await request(`${mirror.registryUrl}/v2/limits/app/manifests/v${at}`))
    note(
      `${where}, 150 pushes of 4 MB of annotations, then a restart`,
      'it starts, and everything is there',
      `${tally(outcomes)}; ${before}; restart ${Math.round(mirror.slowestStartMs)} ms, ${peak(mirror)} then; ${tally(there)}`,
    )
  })
}

async function withLimit(mebibytes, use) {
  const group = new MemoryGroup(findMemoryGroups(), `mirror-limits-${process.pid}`, mebibytes * MiB)
  try {
    await withMirror({ wrapper: group.wrapper, cache: { maxSize: '20GiB' } }, use)
  } finally {
    await group.remove()
  }
}
