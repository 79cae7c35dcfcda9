import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent } from '../support/expect-content.ts'
import { failDisk, hasStrace, oneDiskThread } from '../support/failing-disk.ts'
import { get, type Answer } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { startTestRegistry } from '../support/registry.ts'

const octets = { 'content-type': 'application/octet-stream' }

/** Pushes a blob by POST and PUT; returns the last answer. */
async function pushBlob(url: string, name: string, body: Buffer): Promise<Answer> {
  const begun = await get(url, `/v2/${name}/blobs/uploads/`, { method: 'POST' })
  if (begun.status !== 202) return begun
  const target = `${begun.headers.location}?digest=${computeDigest(body)}`
  return get(url, target, { method: 'PUT', headers: octets, body })
}

test('a thousand pushes succeed while garbage is collected every 100 ms', async () => {
  const registry = await startTestRegistry()
  const over = new AbortController()
  let collected = 0
  const collecting = (async () => {
    while (!over.signal.aborted) {
      const answer = await registry.post('/api/registry/gc', { untagged: true, grace: 2000, dryRun: false })
      expect(answer.status).toBe(200)
      collected += (JSON.parse(answer.body.toString()) as { blobs: number }).blobs
      await sleep(100)
    }
  })()
  const statuses: number[] = []
  const push = async (worker: number) => {
    for (let at = 0; at < 125; at++) {
      // Mixes repeated and new content; each push takes the tag from the image before it.
      const image = makeImage({
        layers: [noise(500, at % 10), noise(500, 10_000 + worker * 1000 + at)],
        seed: worker * 1000 + at,
      })
      for (const blob of image.blobs.values())
        statuses.push((await pushBlob(registry.url, `app${worker % 3}`, blob)).status)
      statuses.push((await registry.pushManifest(`app${worker % 3}`, `w${worker}`, image)).status)
    }
  }
  await Promise.all(Array.from({ length: 8 }, (_, worker) => push(worker)))
  over.abort()
  await collecting
  expect(statuses).toHaveLength(8 * 125 * 4)
  expect(new Set(statuses)).toEqual(new Set([201]))
  for (let worker = 0; worker < 8; worker++) {
    const last = makeImage({
      layers: [noise(500, 4), noise(500, 10_000 + worker * 1000 + 124)],
      seed: worker * 1000 + 124,
    })
    expectContent(await registry.get(`/v2/app${worker % 3}/manifests/w${worker}`), last.digest)
    for (const layer of last.layers) expectContent(await registry.get(`/v2/app${worker % 3}/blobs/${layer}`), layer)
  }
  // Checks that the collections removed blobs.
  expect(collected).toBeGreaterThan(0)
})

describe.skipIf(!hasStrace)('a disk that fails', () => {
  test.each([
    ['on every fsync', 'fsync,fdatasync:error=EIO', [500]],
    ['with ENOSPC from the third write on', 'pwrite64:error=ENOSPC:when=3+', [507]],
    ['with EIO from the third write on', 'pwrite64:error=EIO:when=3+', [500]],
    ['on every rename', 'rename,renameat,renameat2:error=EIO', [500]],
  ])('no push to a disk that fails %s gets 201, and a later retry does', async (_, injection, statuses) => {
    const image = makeImage({ layers: [noise(5_000_000)] })
    const [layer] = image.layers
    const mirror = await startMirrorProcess({ upstreams: {}, registry: true, env: oneDiskThread })
    const url = mirror.registryUrl!
    const putManifest = () =>
      get(url, '/v2/app/manifests/v1', {
        method: 'PUT',
        headers: { 'content-type': image.mediaType },
        body: image.bytes,
      })
    // Creates the log of the metadata and stores one blob before the disk fails.
    for (const [digest, blob] of image.blobs) if (digest !== layer) await pushBlob(url, 'app', blob)

    const mend = await failDisk(mirror, injection)
    for (const _try of ['once', 'again'])
      expect(statuses).toContain((await pushBlob(url, 'app', image.blobs.get(layer!)!)).status)
    expect((await get(url, `/v2/app/blobs/${layer}`)).status).toBe(404)
    expect((await putManifest()).status).toBeGreaterThanOrEqual(400)
    expect((await get(url, '/v2/app/manifests/v1')).status).toBe(404)
    await mend()

    expect((await pushBlob(url, 'app', image.blobs.get(layer!)!)).status).toBe(201)
    expect((await putManifest()).status).toBe(201)
    mirror.kill('SIGKILL')
    await mirror.ended
    const again = await startMirrorProcess({ upstreams: {}, registry: true, home: mirror.home })
    expectContent(await get(again.registryUrl!, '/v2/app/manifests/v1'), image.digest)
    expectContent(await get(again.registryUrl!, `/v2/app/blobs/${layer}`), layer!)
  })
})

/** Returns the system calls in the order in which they ended; joins those that another thread's call interrupted. */
function callsOf(trace: string): string[] {
  const begun = new Map<string, string>()
  return trace.split('\n').flatMap((line) => {
    const [, pid = '', call = ''] = /^(\d+) +(.*)$/.exec(line) ?? []
    const cut = call.indexOf(' <unfinished ...>')
    if (cut !== -1) begun.set(pid, call.slice(0, cut))
    if (cut !== -1 || call === '') return []
    const rest = /^<\.\.\. \w+ resumed>(.*)$/.exec(call)?.[1]
    return [rest === undefined ? call : `${begun.get(pid) ?? ''}${rest}`]
  })
}

describe.skipIf(!hasStrace)('a trace of system calls', () => {
  test('a push gets 201 only after the file, its folder and the metadata are on disk', async () => {
    const trace = join(await temporaryHome(), 'trace')
    const calls = 'write,writev,pwrite64,pwritev,fsync,fdatasync,rename,renameat,renameat2'
    const mirror = await startMirrorProcess({
      upstreams: {},
      registry: true,
      wrapper: ['strace', '-f', '-qq', '-y', '-s', '64', '-o', trace, '-e', `trace=${calls}`],
    })
    const url = mirror.registryUrl!
    const image = makeImage()
    const pushes = [
      ...[...image.blobs].map(([digest, blob]) => ({ digest, push: () => pushBlob(url, 'app', blob) })),
      {
        digest: image.digest,
        push: () =>
          get(url, '/v2/app/manifests/v1', {
            method: 'PUT',
            headers: { 'content-type': image.mediaType },
            body: image.bytes,
          }),
      },
    ]
    for (const { digest, push } of pushes) {
      const before = (await readFile(trace, 'utf8')).length
      expect((await push()).status).toBe(201)
      await sleep(300)
      const seen = callsOf((await readFile(trace, 'utf8')).slice(before))
      const steps = [
        /^pwrite64\(\d+<[^>]*\/registry\/v\d+\/tmp\//,
        /^f(data)?sync\(\d+<[^>]*\/registry\/v\d+\/tmp\/.*= 0$/,
        new RegExp(`^rename.*/registry/v\\d+/tmp/.*/blobs/sha256/${digest.slice('sha256:'.length)}.*= 0$`),
        /^fsync\(\d+<[^>]*\/registry\/v\d+\/blobs\/sha256>\).*= 0$/,
        /^p?write(64)?\(\d+<[^>]*\/registry\/v\d+\/metadata\//,
        /^f(data)?sync\(\d+<[^>]*\/registry\/v\d+\/metadata\/[^>]+>\).*= 0$/,
        /^writev?\(.*HTTP\/1\.1 201 /,
      ]
      const places = steps.map((step) => seen.findIndex((call) => step.test(call)))
      expect(places).not.toContain(-1)
      expect(places).toEqual(places.toSorted((a, b) => a - b))
      // Checks that no write of a push comes after its answer.
      const later = seen.slice(places.at(-1)! + 1)
      expect(later.filter((call) => /^(p?write|f(data)?sync|rename).*\/registry\/v\d+\//.test(call))).toEqual([])
    }
  })
})
