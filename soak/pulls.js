// Pulls images as clients do, and checks every byte.
import { Agent } from 'node:http'
import { bytesOf, digestOf } from './content.js'
import { between, createRandom, pick } from './random.js'
import { request } from './request.js'

/** Lists the statuses that are allowed while an upstream is broken and for `recoveryMs` after it: a circuit stays open for 30 s. */
const outage = new Set([429, 502, 503, 504])
const recoveryMs = 45_000

export class Puller {
  #random
  #agent = new Agent({ keepAlive: true, maxSockets: 8 })

  /** @param {import('./soak.js').Scene} scene @param {number} seed */
  constructor(scene, seed) {
    this.scene = scene
    this.#random = createRandom(seed)
  }

  stop() {
    this.#agent.destroy()
  }

  /** Pulls an image that no client has requested yet. */
  async cold() {
    await this.#image('cold', this.scene.upstreams.publish())
  }

  /** Pulls one of the newest images, most of which are cached. */
  async warm() {
    await this.#image('warm', pick(this.#random, this.scene.upstreams.published.slice(-12)))
  }

  /** Pulls any image that was ever published: some are cached, most are evicted. */
  async old() {
    await this.#image('old', pick(this.#random, this.scene.upstreams.published))
  }

  /** Pulls the same new image with several clients at once. */
  async crowd() {
    const entry = this.scene.upstreams.publish()
    await Promise.all(Array.from({ length: 5 }, () => this.#image('crowd', entry)))
  }

  /** Requests ranges of a blob that may be cached, arriving or new. */
  async ranges() {
    const random = this.#random
    const entry = random() < 0.5 ? this.scene.upstreams.publish() : pick(random, this.scene.upstreams.published)
    const blob = pick(random, entry.image.blobs)
    const bytes = bytesOf(blob)
    const url = this.#url(entry, `blobs/${blob.digest}`)
    const reads = Array.from({ length: 4 }, async () => {
      const from = between(random, 0, blob.size - 1)
      const to = between(random, from, blob.size - 1)
      const outcome = await this.#get('range', url, { range: `bytes=${from}-${to}` })
      if (outcome?.status === 206) {
        if (outcome.digest !== digestOf(bytes.subarray(from, to + 1))) this.#wrong(`bytes ${from}-${to}`, url, outcome)
        else this.scene.ledger.bytesChecked += outcome.size
      } else if (outcome?.status === 200) this.#check(url, outcome, blob.digest)
    })
    await Promise.all(reads)
  }

  /** Requests a blob, and closes the connection early or reads slowly. */
  async abandon() {
    const random = this.#random
    const entry = random() < 0.5 ? this.scene.upstreams.publish() : pick(random, this.scene.upstreams.published)
    const blob = pick(random, entry.image.blobs)
    const url = this.#url(entry, `blobs/${blob.digest}`)
    const options = random() < 0.7 ? { leaveAfter: between(random, 1, blob.size) } : { pauseMs: 20 }
    const outcome = await request(url, { ...options, timeoutMs: 15_000 })
    this.scene.ledger.count('abandon', outcome.error ?? String(outcome.status))
    if (outcome.complete && outcome.status === 200) this.#check(url, outcome, blob.digest)
  }

  async #image(traffic, entry) {
    const random = this.#random
    const tag = random() < 0.3 ? 'latest' : entry.tag
    const url = this.#url(entry, `manifests/${tag}`)
    if (random() < 0.3) await this.#get(`${traffic} HEAD`, url, {}, { method: 'HEAD' })
    const outcome = await this.#get(`${traffic} tag`, url)
    if (outcome?.status !== 200) return
    const known = this.scene.upstreams.history.get(`${entry.registry} ${entry.name} ${tag}`)
    if (!known.has(outcome.digest)) this.#wrong(`a manifest that ${tag} never meant`, url, outcome)
    const digest = outcome.digest
    const byDigest = await this.#get(`${traffic} manifest`, this.#url(entry, `manifests/${digest}`))
    if (byDigest?.status === 200) this.#check(url, byDigest, digest)
    // Find the image by digest, because `latest` may have moved.
    const image = this.scene.upstreams.published.findLast(({ image }) => image.digest === digest)?.image ?? entry.image
    await Promise.all(
      image.blobs.map(async (blob) => {
        const blobUrl = this.#url(entry, `blobs/${blob.digest}`)
        const answer = await this.#get(`${traffic} blob`, blobUrl)
        if (answer?.status === 200) this.#check(blobUrl, answer, blob.digest)
      }),
    )
  }

  #url({ registry, name }, rest) {
    const base = this.scene.mirror.cacheUrl
    return registry === 'docker.io'
      ? `${base}/v2/${name}/${rest}?ns=docker.io`
      : `${base}/v2/${registry}/${name}/${rest}`
  }

  #check(url, outcome, digest) {
    if (outcome.digest !== digest) this.#wrong('another body', url, outcome)
    else this.scene.ledger.bytesChecked += outcome.size
  }

  #wrong(what, url, { status, size, digest }) {
    this.scene.ledger.find(`wrong bytes: ${what}: ${status}, ${size} bytes, ${digest} from ${url}`)
  }

  /** Returns the outcome of a complete response; undefined otherwise. Records a finding when no outage explains the failure. */
  async #get(traffic, url, headers = {}, options = {}) {
    const { ledger, mirror } = this.scene
    const { epoch } = mirror
    if (!mirror.isUp) return undefined
    const outcome = await request(url, { ...options, headers, agent: this.#agent })
    const wasUp = mirror.isUp && mirror.epoch === epoch
    const result =
      outcome.status === 0 ? (outcome.error ?? 'no answer') : `${outcome.status}${outcome.complete ? '' : ' cut'}`
    ledger.count(traffic, wasUp ? result : 'killed')
    if (!wasUp) return undefined
    const isRight = outcome.complete && [200, 206].includes(outcome.status)
    const isOutage = !outcome.complete || outcome.status === 0 || outage.has(outcome.status)
    if (!isRight && !(isOutage && this.scene.msSinceFaults() < recoveryMs)) {
      ledger.find(`${traffic}: ${result} from ${url}`)
    }
    return outcome.complete ? outcome : undefined
  }
}
