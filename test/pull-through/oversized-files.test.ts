import { mkdir, rm, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'

const MiB = 1024 * 1024

/** files are those below its home that a mirror reads when it starts; none of them may prevent the start. */
const files = [
  ['the statistics', 'state/stats.json'],
  ['the past changes', 'state/past-changes.json'],
  ['the state', 'state/mirror.json'],
  ['the token', 'state/token'],
  ['the running time', 'data/cache/v2/running.json'],
  ['the lock', 'data/cache/v2/lock'],
  ['the log of the metadata', 'data/cache/v2/metadata/0000000000000001.log'],
]

/** Creates a sparse file that exceeds the maximum length of a string. */
async function makeHuge(path: string): Promise<void> {
  await writeFile(path, '{')
  await truncate(path, 600 * MiB)
}

test.each(files)('the mirror starts and serves when %s has grown to 600 MiB', async (_, file) => {
  const { mirror, upstream, image } = await startScene()
  expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  await mirror.close()
  await makeHuge(join(mirror.home, file))
  const before = process.memoryUsage().rss
  const again = await startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
  expect(process.memoryUsage().rss - before).toBeLessThan(200 * MiB)
  expectContent(await again.get(`${app}/manifests/v1`), image.digest)
})

test('the mirror starts and serves when the statistics file is a folder', async () => {
  const { mirror, upstream, image } = await startScene()
  await mirror.close()
  await rm(join(mirror.home, 'state', 'stats.json'), { force: true })
  await mkdir(join(mirror.home, 'state', 'stats.json'))
  const again = await startTestMirror({ home: mirror.home, upstreams: { 'docker.io': upstream.url } })
  expectContent(await again.get(`${app}/manifests/v1`), image.digest)
})
