import { cp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect } from 'vitest'
import { mediaType } from '../../../src/oci/content.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { send, type Fault } from '../faulty-server.ts'
import { get } from '../get.ts'
import { makeIndex, manifestOf, type TestImage } from '../images.ts'
import { type MirrorProcess, startMirrorProcess } from '../mirror-process.ts'
import { temporaryHome } from '../mirror.ts'
import { noise } from '../noise.ts'
import { pushBlob, pushImage, putManifest } from '../push.ts'
import { startUpstream } from '../upstream.ts'
import {
  accounts,
  accountToken,
  askAll,
  commands,
  type Expected,
  fixture,
  homeWithStores,
  readCounts,
  runJson,
  startOffline,
  stop,
  storeNames,
  upstreamsFor,
  writeIdentityKey,
} from './fixture.ts'

const twoDays = 48 * 3_600_000

/** Makes an image as small as it can be; `members` are added to its manifest. */
function small(seed: number, members: object = {}, types: 'oci' | 'docker' = 'oci'): TestImage {
  const [type, configType, layerType] =
    types === 'oci'
      ? [mediaType.ociManifest, mediaType.ociConfig, mediaType.ociLayerGzip]
      : [mediaType.dockerManifest, mediaType.dockerConfig, mediaType.dockerLayer]
  const [config, layer] = [Buffer.from(`{"seed":${seed}}`), noise(20, seed)]
  const [configDigest, digest] = [computeDigest(config), computeDigest(layer)]
  const manifest = {
    schemaVersion: 2,
    mediaType: type,
    config: { mediaType: configType, digest: configDigest, size: config.length },
    layers: [{ mediaType: layerType, digest, size: layer.length }],
    ...members,
  }
  const blobs = new Map([
    [configDigest, config],
    [digest, layer],
  ])
  return { ...manifestOf(Buffer.from(JSON.stringify(manifest)), type), blobs, layers: [digest] }
}

const index = makeIndex([small(3), small(4)])
const wideLayer = noise(30, 5)
const wideDigest = computeDigest(wideLayer, 'sha512')
const wide = toSha512(small(5, { layers: [{ mediaType: mediaType.ociLayerGzip, digest: wideDigest, size: 30 }] }))
const [app, moved, pinned, legacy] = [small(1), small(2), small(6), small(7, {}, 'docker')]
const signature = artifact(app, 'application/vnd.example.signature', { 'org.example.by': 'me' })
const sbom = artifact(app, 'application/vnd.example.sbom')

/** Names the image by a digest of sha512, and adds its layer. */
function toSha512(image: TestImage): TestImage {
  const digest = computeDigest(image.bytes, 'sha512')
  const blobs = new Map([...image.blobs].slice(0, 1))
  blobs.set(wideDigest, wideLayer)
  return { ...image, digest, blobs, manifests: new Map([[digest, { mediaType: image.mediaType, bytes: image.bytes }]]) }
}

/** Makes a referrer of an image. */
function artifact(subject: TestImage, artifactType: string, annotations = {}): TestImage {
  const { mediaType: type, digest, bytes } = subject
  const members = { artifactType, annotations, subject: { mediaType: type, digest, size: bytes.length } }
  return small(artifactType.length, members)
}

const describeReferrer = ({ mediaType: type, digest, bytes }: TestImage, artifactType: string) => ({
  mediaType: type,
  digest,
  size: bytes.length,
  artifactType,
})
const listOf = (manifests: unknown[]) =>
  Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests }))

/** Answers as a referrers API with pages of one entry, which filters. */
const referrersApi: Fault = ({ request, response }) => {
  const { pathname, searchParams } = new URL(request.url!, 'http://upstream.invalid')
  const all = [
    describeReferrer(signature, 'application/vnd.example.signature'),
    describeReferrer(sbom, 'application/vnd.example.sbom'),
  ]
  const type = searchParams.get('artifactType')
  const [at, page] = searchParams.has('page') ? [1, all.slice(1)] : [0, all.slice(0, 1)]
  if (type !== null) {
    const headers = { 'content-type': mediaType.ociIndex, 'oci-filters-applied': 'artifactType' }
    return send(response, { status: 200, headers, body: listOf(all.filter((entry) => entry.artifactType === type)) })
  }
  const link = at === 0 ? { link: `<${pathname}?page=2>; rel="next"` } : {}
  return send(response, { status: 200, headers: { 'content-type': mediaType.ociIndex, ...link }, body: listOf(page) })
}

/** Writes the fixture with a built release: its stores, and what it answers about them. */
export async function recordStores(release: string, version: string): Promise<void> {
  const home = await temporaryHome()
  await writeIdentityKey(home)
  const requests = await fillStores(home, release)
  for (const name of storeNames) {
    await rm(join(fixture, name), { recursive: true, force: true })
    await cp(join(home, 'data', name), join(fixture, name), { recursive: true })
  }
  const expected = await describeStores(release, version, requests)
  await writeFile(join(fixture, 'expected.json'), format(expected))
}

/** Formats the JSON with one answer a line. */
function format(value: object): string {
  const parts = Object.entries(value).map(([key, part]: [string, unknown]) => {
    const isMap = typeof part === 'object' && part !== null && !Array.isArray(part)
    return `${JSON.stringify(key)}: ${isMap && !('status' in part) ? format(part).trimEnd() : JSON.stringify(part)}`
  })
  return `{\n${parts.join(',\n')}\n}\n`
}

interface Requests {
  readonly cache: ReadonlySet<string>
  readonly registry: ReadonlySet<string>
}

/** Pulls and pushes through the release, in two lives with two days of running time between them. */
async function fillStores(home: string, release: string): Promise<Requests> {
  const open = await startUpstream({
    images: {
      'library/app': { v1: app, moving: moved, multi: index },
      'library/pinned': { latest: pinned },
      'library/legacy': { '1': legacy },
      'library/wide': { latest: wide },
      'library/alone': { latest: small(8) },
    },
  })
  const listed = manifestOf(listOf([describeReferrer(signature, 'application/vnd.example.old')]), mediaType.ociIndex)
  open.push('library/legacy', legacy.digest.replace(':', '-'), listed)
  open.on({ path: /^\/v2\/library\/app\/referrers\// }, referrersApi)
  const secret = await startUpstream({
    images: { 'team/app': { v1: small(9), v2: small(10) } },
    auth: { scheme: 'basic', users: { alice: 'password of alice', bob: 'password of bob' } },
  })
  // Both tokens are good: the second one is the first one's successor.
  const tokens = await startUpstream({
    images: { 'team/tool': { v1: small(11) } },
    auth: { scheme: 'basic', users: { robot: accountToken(1) } },
  })
  const renewed = await startUpstream({
    images: { 'team/tool': { v1: small(11), v2: small(13) } },
    auth: { scheme: 'basic', users: { robot: accountToken(2) } },
  })
  const urls = { 'docker.io': open.url, 'private.example': secret.url, 'tokens.example': tokens.url }

  const cache = new Set<string>()
  const registry = new Set<string>()
  const pull = async (mirror: MirrorProcess, path: string, status = 200): Promise<void> => {
    cache.add(`GET /v2/${path}`)
    expect([path, (await mirror.get(`/v2/${path}`)).status]).toEqual([path, status])
  }
  const pullImage = async (mirror: MirrorProcess, name: string, reference: string, image: TestImage) => {
    await pull(mirror, `${name}/manifests/${reference}`)
    for (const digest of image.blobs.keys()) await pull(mirror, `${name}/blobs/${digest}`)
    // One of the blobs is enough for a question.
    cache.delete(`GET /v2/${name}/blobs/${[...image.blobs.keys()][0]}`)
  }

  const first = await startMirrorProcess({ ...upstreamsFor('alice', urls), home, program: release })
  await pullImage(first, 'docker.io/library/app', 'v1', app)
  await pullImage(first, 'docker.io/library/app', 'moving', moved)
  await pull(first, 'docker.io/library/app/manifests/multi')
  await pullImage(first, 'docker.io/library/app', [...index.manifests.keys()][1]!, small(3))
  await pull(first, `docker.io/library/app/referrers/${app.digest}`)
  await pull(first, `docker.io/library/app/referrers/${app.digest}?page=2`)
  await pull(first, `docker.io/library/app/referrers/${app.digest}?artifactType=application/vnd.example.sbom`)
  await pullImage(first, 'docker.io/library/pinned', pinned.digest, pinned)
  await pull(first, `docker.io/library/pinned/referrers/${pinned.digest}`)
  await pullImage(first, 'docker.io/library/legacy', '1', legacy)
  await pull(first, `docker.io/library/legacy/referrers/${legacy.digest}`)
  await pull(first, `docker.io/library/alone/blobs/${small(8).layers[0]}`)
  await pullImage(first, 'private.example/team/app', 'v1', small(9))
  await pullImage(first, 'tokens.example/team/tool', 'v1', small(11))
  await pull(first, 'docker.io/library/app/tags/list')
  await pushAll(first.registryUrl!, registry)
  await stop(first)
  for (const name of storeNames) await passTime(join(home, 'data', name, 'v1', 'running.json'))
  await runJson(home, 'registry rm app:removed', release)

  const later = { ...urls, 'tokens.example': renewed.url }
  const second = await startMirrorProcess({ ...upstreamsFor('bob', later), home, program: release })
  open.push('library/app', 'moving', small(14))
  await pullImage(second, 'docker.io/library/app', 'v1', app)
  await pullImage(second, 'docker.io/library/app', 'moving', small(14))
  await pullImage(second, 'docker.io/library/wide', wide.digest, wide)
  await pullImage(second, 'private.example/team/app', 'v2', small(10))
  await pullImage(second, 'tokens.example/team/tool', 'v2', small(13))
  await pushMore(second.registryUrl!, registry)
  await stop(second)

  // What a store must not answer: content of another repository, what nobody pulled, and an arm64 image without its layer.
  const arm64 = [...index.manifests.keys()][2]!
  for (const path of [
    `docker.io/library/app/blobs/${small(9).layers[0]}`,
    `docker.io/library/pinned/blobs/${app.layers[0]}`,
    `docker.io/library/app/manifests/${arm64}`,
    'docker.io/library/app/manifests/absent',
    '_catalog?ns=docker.io',
    '_catalog?ns=private.example',
  ])
    cache.add(`GET /v2/${path}`)
  for (const request of [...cache].filter((request) => /docker\.io.*manifests\/[^:]+$/.test(request)))
    cache.add(request.replace('GET', 'HEAD'))
  return { cache, registry }
}

/** Moves the running time of a stopped store forward, as if the mirror had run for two days. */
async function passTime(path: string): Promise<void> {
  const { runningMs } = JSON.parse(await readFile(path, 'utf8')) as { runningMs: number }
  await writeFile(path, `${JSON.stringify({ runningMs: runningMs + twoDays })}\n`)
}

/** Pushes what the first life of the registry gets. */
async function pushAll(url: string, requests: Set<string>): Promise<void> {
  for (const [repository, reference, image] of [
    ['app', 'v1', small(20)],
    ['app', 'v2', small(21)],
    ['app', 'multi', makeIndex([small(22)])],
    ['app', 'gone', small(24)],
    ['app', 'removed', small(25)],
    ['app', small(26).digest, small(26)],
    ['team/deep/name', 'V_1.0-x', small(28)],
  ] as const)
    await pushAndNote(url, requests, repository, reference, image)
  await pushAndNote(url, requests, 'app', ...referrer(small(20), 'application/vnd.example.signature', { by: 'me' }))
  await pushAndNote(url, requests, 'app', ...referrer(small(20), 'application/vnd.example.sbom'))
  requests.add(`GET /v2/app/referrers/${small(20).digest}`)
  requests.add(`GET /v2/app/referrers/${small(20).digest}?artifactType=application/vnd.example.sbom`)
  await pushWide(url, requests)
  await pushBlob(url, 'app', noise(60, 29))
  requests.add(`GET /v2/app/blobs/${computeDigest(noise(60, 29))}`)
  expect((await putManifest(url, 'app', 'latest', small(21))).status).toBe(201)
  expect((await get(url, '/v2/app/manifests/gone', { method: 'DELETE' })).status).toBe(202)
}

/** Mounts the blobs of another repository for an image, and one that no manifest names. */
async function mountAll(url: string, requests: Set<string>): Promise<void> {
  const image = small(21)
  for (const digest of [...image.blobs.keys(), small(26).layers[0]!]) {
    const path = `/v2/team/mounted/blobs/uploads/?mount=${digest}&from=app`
    expect((await get(url, path, { method: 'POST' })).status).toBe(201)
    requests.add(`GET /v2/team/mounted/blobs/${digest}`)
  }
  expect((await putManifest(url, 'team/mounted', 'v1', image)).status).toBe(201)
  requests.add('HEAD /v2/team/mounted/manifests/v1')
  requests.add(`GET /v2/team/mounted/blobs/${small(20).layers[0]}`)
}

/** Pushes a manifest and a layer under digests of sha512. */
async function pushWide(url: string, requests: Set<string>): Promise<void> {
  for (const [digest, blob] of wide.blobs) await pushBlob(url, 'wide', blob, digest)
  const answer = await putManifest(url, 'wide', wide.digest, wide)
  expect([answer.status, answer.headers['docker-content-digest']]).toEqual([201, wide.digest])
  requests.add(`GET /v2/wide/manifests/${wide.digest}`)
  for (const digest of wide.blobs.keys()) requests.add(`GET /v2/wide/blobs/${digest}`)
}

/** Pushes what the second life of the registry gets: a tag that moves, garbage that is young, and a removal by digest. */
async function pushMore(url: string, requests: Set<string>): Promise<void> {
  await pushAndNote(url, requests, 'app', 'v1', small(30))
  await mountAll(url, requests)
  await pushBlob(url, 'app', noise(70, 31))
  requests.add(`GET /v2/app/blobs/${computeDigest(noise(70, 31))}`)
  await pushAndNote(url, requests, 'app', small(32).digest, small(32))
  await pushAndNote(url, requests, 'emptied', 'v1', small(33))
  expect((await get(url, `/v2/emptied/manifests/${small(33).digest}`, { method: 'DELETE' })).status).toBe(202)
  for (const path of ['app', 'wide', 'team/deep/name', 'team/mounted', 'emptied', 'absent'])
    requests.add(`GET /v2/${path}/tags/list`)
  for (const path of ['app/manifests/absent', '_catalog', 'app/tags/list?n=2']) requests.add(`GET /v2/${path}`)
}

const isDigest = (reference: string) => reference.includes(':')

function referrer(subject: TestImage, type: string, annotations = {}): [reference: string, image: TestImage] {
  const image = artifact(subject, type, annotations)
  return [image.digest, image]
}

async function pushAndNote(
  url: string,
  requests: Set<string>,
  repository: string,
  reference: string,
  image: TestImage,
): Promise<void> {
  await pushImage(url, repository, reference, image)
  for (const at of image.manifests.keys()) requests.add(`GET /v2/${repository}/manifests/${at}`)
  if (!isDigest(reference)) requests.add(`HEAD /v2/${repository}/manifests/${reference}`)
  for (const digest of image.layers) requests.add(`GET /v2/${repository}/blobs/${digest}`)
}

/** Asks the release about the recorded stores: each time about a copy. */
async function describeStores(program: string, release: string, requests: Requests): Promise<Expected> {
  const home = await homeWithStores()
  const outputs: Record<string, unknown> = {}
  for (const command of commands) outputs[command] = await runJson(home, command, program)
  const cache: Partial<Record<string, Expected['cache']['alice']>> = {}
  let registry: Expected['registry'] = {}
  let status: Expected['status'] | undefined
  for (const account of accounts) {
    const mirror = await startOffline(await homeWithStores(), account, { program })
    const blobs = await countFiles(join(fixture, 'cache', 'v1', 'blobs'))
    await expect.poll(async () => (await mirror.status()).storage.blobs).toBe(blobs)
    status = await readCounts(mirror)
    // Other content does not depend on the account.
    const asked = account === 'alice' ? /./ : account === 'bob' ? /private|tokens/ : /private/
    const asks = [...requests.cache].filter((request) => asked.test(request))
    cache[account] = await askAll(mirror.url, asks)
    registry = await askAll(mirror.registryUrl!, requests.registry)
    await stop(mirror)
  }
  return { release, commands: outputs, cache: cache as Expected['cache'], registry, status: status! }
}

async function countFiles(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile()).length
}
