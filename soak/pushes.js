// Pushes images to the local registry, deletes some, and records the acknowledged content, which must exist.
import { Agent } from 'node:http'
import { bytesOf, makeBlob, makeImage, manifestType } from './content.js'
import { between, createRandom, noise } from './random.js'
import { request } from './request.js'

const mostImages = 30

/**
 * Pushes to a repository of its own, one image after the other. `tags` and `blobs` hold the acknowledged content; content whose
 * state is unknown after a kill or a deletion is in neither.
 */
export class Pusher {
  #random
  #agent = new Agent({ keepAlive: true, maxSockets: 4 })
  #serial = 0
  /** Holds the expected digest of each tag. @type {Map<string, string>} */
  tags = new Map()
  /** Holds the digests of deleted manifests. @type {Set<string>} */
  deleted = new Set()
  /** Holds the digests of blobs that must exist. @type {Set<string>} */
  blobs = new Set()
  /** @type {Map<string, import('./content.js').Image>} */
  #images = new Map()
  #base

  /** @param {import('./soak.js').Scene} scene @param {string} name @param {number} seed */
  constructor(scene, name, seed) {
    this.scene = scene
    this.name = name
    this.seed = seed
    this.#random = createRandom(seed)
    // Create the layer that every image contains.
    this.#base = makeBlob(200_000, seed * 1_000_003)
  }

  stop() {
    this.#agent.destroy()
  }

  async push() {
    const random = this.#random
    const serial = (this.#serial += 1)
    const seed = this.seed * 1_000_003 + serial * 8
    const layers = Array.from({ length: between(random, 1, 2) }, (_, at) =>
      makeBlob(random() < 0.1 ? between(random, 1_000_000, 4_000_000) : between(random, 1, 200_000), seed + at),
    )
    const annotations =
      random() < 0.1 ? { note: noise(between(random, 1, 500_000), seed + 7).toString('hex') } : undefined
    const image = makeImage([makeBlob(1000, seed + 6), this.#base, ...layers], annotations)
    for (const blob of image.blobs) {
      if (this.blobs.has(blob.digest)) continue
      if (!(await this.#pushBlob(blob))) return
      this.blobs.add(blob.digest)
    }
    const tag = random() < 0.3 ? 'latest' : `v${serial}`
    const before = this.tags.get(tag)
    // Expect nothing of the tag until the response, because it may point to either image.
    this.tags.delete(tag)
    const outcome = await this.#send('push manifest', 'PUT', `manifests/${tag}`, image.bytes, {
      'content-type': manifestType,
    })
    if (outcome === undefined) {
      this.#release(before)
      this.#release(image.digest, image)
      return
    }
    this.tags.set(tag, image.digest)
    this.deleted.delete(image.digest)
    this.#images.set(image.digest, image)
    if (this.tags.size > mostImages) await this.remove()
  }

  /** Deletes one image by digest. */
  async remove() {
    const [tag, digest] = [...this.tags][between(this.#random, 0, this.tags.size - 1)] ?? []
    if (tag === undefined) return
    for (const [other, same] of this.tags) if (same === digest) this.tags.delete(other)
    const outcome = await this.#send('delete', 'DELETE', `manifests/${digest}`)
    this.#release(digest)
    if (outcome !== undefined) this.deleted.add(digest)
  }

  /** Checks that acknowledged content exists and is correct, and that deleted content does not exist. */
  async check() {
    const { ledger, mirror } = this.scene
    const { epoch } = mirror
    const get = async (path, digest, accepted) => {
      const outcome = await request(`${mirror.registryUrl}/v2/${this.name}/${path}`, { agent: this.#agent })
      // Skip the check after a kill; the next check repeats it.
      if (mirror.epoch !== epoch || !mirror.isUp) return
      const isRight = accepted === 404 ? outcome.status === 404 : outcome.status === 200 && outcome.digest === digest
      ledger.count('check', isRight ? 'right' : 'wrong')
      ledger.bytesChecked += outcome.size
      if (!isRight)
        ledger.find(
          `${accepted === 404 ? 'came back' : 'lost'}: ${this.name} ${path}: ${outcome.status} ${outcome.error ?? ''}`,
        )
    }
    for (const [tag, digest] of this.tags) {
      await get(`manifests/${tag}`, digest)
      await get(`manifests/${digest}`, digest)
    }
    for (const digest of this.blobs) await get(`blobs/${digest}`, digest)
    for (const digest of [...this.deleted].slice(-20)) await get(`manifests/${digest}`, digest, 404)
    return this.tags.size * 2 + this.blobs.size
  }

  /** Updates the expected tags after a prune that keeps so many: the registry chooses which ones, but not how many. */
  async keepPruned(count) {
    const { ledger, mirror } = this.scene
    const { epoch } = mirror
    const known = this.tags.size
    const answer = await request(`${mirror.registryUrl}/v2/${this.name}/tags/list`, {
      agent: this.#agent,
      keepBody: true,
    })
    const left = answer.status === 200 ? JSON.parse(answer.body.toString()).tags : []
    if (mirror.epoch === epoch && mirror.isUp && left.length < Math.min(count, known))
      ledger.find(`a prune has left ${left.length} of ${known} tags in ${this.name}: ${answer.status}`)
    for (const [tag, digest] of this.tags) {
      if (left.includes(tag)) continue
      this.tags.delete(tag)
      this.#release(digest)
    }
  }

  /** Stops expecting blobs that no tag needs, before a collection without grace. */
  releaseUntagged() {
    const needed = new Set(
      [...this.tags.values()].flatMap((digest) => this.#images.get(digest).blobs.map((blob) => blob.digest)),
    )
    for (const digest of this.blobs) if (!needed.has(digest)) this.blobs.delete(digest)
  }

  /** Stops expecting blobs that only this image needs. */
  #release(digest, image = this.#images.get(digest)) {
    if (image === undefined || [...this.tags.values()].includes(digest)) return
    const needed = new Set(
      [...this.tags.values()].flatMap((other) => this.#images.get(other).blobs.map((blob) => blob.digest)),
    )
    for (const blob of image.blobs) if (!needed.has(blob.digest)) this.blobs.delete(blob.digest)
  }

  /** Pushes a blob in one piece or in two parts. */
  async #pushBlob(blob) {
    const bytes = bytesOf(blob)
    const random = this.#random
    const begun = await this.#send('push begin', 'POST', 'blobs/uploads/')
    if (begun === undefined) return false
    const location = new URL(begun.headers.location, this.scene.mirror.registryUrl)
    const half = random() < 0.5 ? 0 : bytes.length >> 1
    if (half > 0 && (await this.#send('push part', 'PATCH', location, bytes.subarray(0, half))) === undefined)
      return false
    location.searchParams.set('digest', blob.digest)
    return (await this.#send('push blob', 'PUT', location, bytes.subarray(half))) !== undefined
  }

  /** Returns the response if its status is 2xx; undefined otherwise. Records a finding unless the mirror was killed. */
  async #send(traffic, method, target, body, headers = {}) {
    const { ledger, mirror } = this.scene
    const { epoch } = mirror
    if (!mirror.isUp) return undefined
    const url = typeof target === 'string' ? `${mirror.registryUrl}/v2/${this.name}/${target}` : String(target)
    const outcome = await request(url, { method, body, headers, agent: this.#agent, keepBody: true })
    const isYes = outcome.complete && outcome.status >= 200 && outcome.status < 300
    if (isYes) {
      ledger.count(traffic, String(outcome.status))
      return outcome
    }
    const wasUp = mirror.isUp && mirror.epoch === epoch
    ledger.count(traffic, wasUp ? `${outcome.status || outcome.error}` : 'killed')
    if (wasUp)
      ledger.find(`${traffic}: ${outcome.status} ${outcome.error ?? ''} ${outcome.body?.toString()} from ${url}`)
    return undefined
  }
}
