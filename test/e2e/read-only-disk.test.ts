import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { pushBlob, pushImage } from '../support/push.ts'
import { startUpstream } from '../support/upstream.ts'
import { run } from './support/run.ts'

const { missing } = inject('e2e')

describe.skipIf(missing !== undefined)('a disk that has become read-only', () => {
  test('every push and delete on a read-only disk gets 507 with the reason, and pulls go on, also cold ones', async () => {
    const cold = makeImage({ seed: 1 })
    const upstream = await startUpstream({ images: { 'library/app': { v1: cold } } })
    const home = await temporaryHome()
    const disk = join(home, 'data')
    await mkdir(disk)
    await run('mount', ['-t', 'tmpfs', 'tmpfs', disk])
    onTestFinished(async () => void (await run('umount', ['--lazy', disk])))
    const mirror = await startMirrorProcess({
      upstreams: { 'docker.io': upstream.url },
      registry: true,
      home,
      cache: { minFree: '0' },
    })
    const url = mirror.registryUrl!
    const ask = (method: string, path: string, body?: Buffer | string, type = 'application/octet-stream') =>
      get(url, path, { method, ...(body !== undefined && { body }), headers: { 'content-type': type } })
    const image = makeImage({ seed: 2 })
    await pushImage(url, 'app', 'v1', image)
    const uploads: string[] = []
    for (let at = 0; at < 3; at += 1) uploads.push((await ask('POST', '/v2/app/blobs/uploads/')).headers.location!)

    await run('mount', ['-o', 'remount,ro', disk])
    const body = Buffer.from('new')
    const digest = computeDigest(body)
    const changes: [string, string, (Buffer | string)?, string?][] = [
      ['POST', '/v2/app/blobs/uploads/'],
      ['POST', `/v2/app/blobs/uploads/?digest=${digest}`, body],
      ['PATCH', uploads[0]!, body],
      ['PUT', `${uploads[1]}?digest=${digest}`, body],
      ['PUT', '/v2/app/manifests/v2', image.bytes, image.mediaType],
      ['POST', `/v2/other/blobs/uploads/?mount=${image.layers[0]}&from=app`],
      ['DELETE', '/v2/app/manifests/v1'],
      ['DELETE', `/v2/app/manifests/${image.digest}`],
      ['DELETE', `/v2/app/blobs/${image.layers[0]}`],
    ]
    for (const [method, path, sent, type] of changes) {
      const answer = await ask(method, path, sent, type)
      expect(answer.status, `${method} ${path}`).toBe(507)
      expectError(answer, 507, 'DENIED')
      expect(answer.body.toString()).toContain('read-only')
    }
    expectContent(await get(url, '/v2/app/manifests/v1'), image.digest)
    expectContent(await get(url, `/v2/app/blobs/${image.layers[0]}`), image.layers[0]!)
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), cold.digest)
    expectContent(await mirror.get(`/v2/library/app/blobs/${cold.layers[0]}`), cold.layers[0]!)

    await run('mount', ['-o', 'remount,rw', disk])
    await pushBlob(url, 'app', body)
    expect((await ask('DELETE', '/v2/app/manifests/v1')).status).toBe(202)
    expect(mirror.log()).not.toContain('"level":"error"')
  })
})
