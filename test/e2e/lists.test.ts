import { mkdtemp, rm } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { mediaType } from '../../src/oci/content.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { startUpstream } from '../support/upstream.ts'
import { newerClients } from './support/newer-clients.ts'
import { run } from './support/run.ts'

const host = 'registry.example:5000'
const image = makeImage()
const signature = makeImage({
  seed: 2,
  manifest: {
    artifactType: 'application/signature',
    subject: { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length },
  },
})
const referrer = {
  mediaType: mediaType.ociManifest,
  digest: signature.digest,
  size: signature.bytes.length,
  artifactType: 'application/signature',
}

/** Answers a list in two pages; the link to the second one has a token of the upstream. */
const inPages =
  (first: object, second: object): Fault =>
  ({ request, response }) => {
    const isFirst = !request.url!.includes('token=')
    const path = request.url!.split('?', 1)[0]!
    const headers = isFirst ? { link: `<https://internal.example${path}?token=k%2F1%3D>; rel=next` } : {}
    send(response, {
      status: 200,
      headers: { ...headers, 'content-type': mediaType.ociIndex },
      body: Buffer.from(JSON.stringify(isFirst ? first : second)),
    })
  }

const indexOf = (manifests: object[]) => ({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests })

async function startClients() {
  const upstream = await startUpstream({ images: { 'org/app': { v1: image, signature } } })
  upstream.on({ path: '/v2/org/app/tags/list' }, inPages({ name: 'x', tags: ['a', 'b'] }, { name: 'x', tags: ['v1'] }))
  upstream.on({ path: /\/referrers\// }, ({ response }) =>
    send(response, { status: 200, body: Buffer.from(JSON.stringify(indexOf([]))) }),
  )
  upstream.on({ path: `/v2/org/app/referrers/${image.digest}` }, inPages(indexOf([]), indexOf([referrer])))
  const mirror = await startTestMirror({ upstreams: { [host]: upstream.url } })
  const bin = join(await newerClients(), 'usr/bin')
  const home = await mkdtemp(join(tmpdir(), 'mirror-lists-'))
  onTestFinished(() => rm(home, { recursive: true, force: true }))
  const tool = (name: string, ...args: string[]) =>
    run(join(bin, name), args, { cwd: home, env: { PATH: process.env['PATH'], HOME: home } })
  return { upstream, mirror, bin, tool, name: `${new URL(mirror.url).host}/registry.example_5000/org/app` }
}

test('crane and oras list all tags of an upstream that names its pages by tokens', async () => {
  const { tool, bin, name } = await startClients()
  expect(await tool('oras', 'repo', 'tags', '--plain-http', name)).toBe('a\nb\nv1\n')
  // Debian 13 has no crane.
  if (existsSync(join(bin, 'crane'))) expect(await tool('crane', 'ls', '--insecure', name)).toBe('a\nb\nv1\n')
})

test('oras discovers the referrers of an image page by page, also while the upstream is down', async () => {
  const { upstream, mirror, tool, name } = await startClients()
  const discover = () => tool('oras', 'discover', '--plain-http', '--format', 'json', `${name}:v1`)
  expect(await discover()).toContain(signature.digest)
  await mirror.get(`/v2/${host}/org/app/manifests/v1`)
  await mirror.get(`/v2/${host}/org/app/manifests/${signature.digest}`)
  await upstream.stop()
  expect(await discover()).toContain(signature.digest)
})
