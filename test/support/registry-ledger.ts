import { readFile } from 'node:fs/promises'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import type { TestImage } from './images.ts'
import type { MirrorProcess } from './mirror-process.ts'

/** Status and body of a response; undefined when the server is gone. */
export type Reply =
  | { readonly status: number; readonly body: Buffer; readonly location: string | undefined }
  | undefined

/** A tag, with the states in which it may be: more than one while a change of it is not answered. `undefined`: no such tag. */
interface Tag {
  readonly name: string
  readonly tag: string
  may: Set<Digest | undefined>
}

/**
 * Changes a registry, and knows what it must hold: what it has acknowledged. After a crash a change without an answer may be there
 * or not, but not in part. One caller at a time changes a tag.
 */
export class RegistryLedger {
  readonly #agent = new Agent({ keepAlive: true })
  readonly #tags = new Map<string, Tag>()
  readonly #images = new Map<Digest, TestImage>()
  /** Holds the acknowledged content by its path. */
  readonly #content = new Map<string, Digest>()
  /** Holds the tags and paths that were changed since the last check. */
  readonly #unchecked = new Set<string>()
  /** Counts the changes that were acknowledged. */
  acknowledged = 0

  constructor() {
    onTestFinished(() => this.#agent.destroy())
  }

  /** Pushes the blobs and the manifest. Returns the status of the last answer; undefined when the server is gone. */
  async push(base: string, name: string, tag: string, image: TestImage): Promise<number | undefined> {
    for (const [digest, blob] of image.blobs) {
      const status = await this.#pushBlob(base, name, digest, blob)
      if (status !== 201) return status
    }
    return this.putManifest(base, name, tag, image)
  }

  async #pushBlob(base: string, name: string, digest: Digest, blob: Buffer): Promise<number | undefined> {
    const path = `/v2/${name}/blobs/${digest}`
    if (this.#content.has(path)) return 201
    const begun = await this.ask(base, 'POST', `/v2/${name}/blobs/uploads/`)
    if (begun?.status !== 202) return begun?.status
    const half = blob.length >> 1
    const sent = await this.ask(base, 'PATCH', begun.location!, blob.subarray(0, half))
    if (sent?.status !== 202) return sent?.status
    const answer = await this.ask(base, 'PUT', `${begun.location}?digest=${digest}`, blob.subarray(half))
    if (answer?.status === 201) this.#acknowledge(path, digest)
    return answer?.status
  }

  /** Pushes only the manifest. */
  async putManifest(base: string, name: string, tag: string, image: TestImage): Promise<number | undefined> {
    this.#images.set(image.digest, image)
    const entry = this.#begin(name, tag, image.digest)
    const path = `/v2/${name}/manifests/${tag}`
    const answer = await this.ask(base, 'PUT', path, image.bytes, { 'content-type': image.mediaType })
    if (answer?.status !== 201) return answer?.status
    entry.may = new Set([image.digest])
    this.#acknowledge(`/v2/${name}/manifests/${image.digest}`, image.digest)
    return 201
  }

  /** Deletes a tag over HTTP; its manifest stays. */
  async untag(base: string, name: string, tag: string): Promise<number | undefined> {
    const entry = this.#begin(name, tag, undefined)
    const answer = await this.ask(base, 'DELETE', `/v2/${name}/manifests/${tag}`)
    if (answer?.status === 202) this.#acknowledgeRemoval(entry)
    return answer?.status
  }

  /** Does what `mirror registry rm NAME:TAG` does: the image of the tag goes too. */
  async remove(mirror: MirrorProcess, name: string, tag: string): Promise<number | undefined> {
    const entry = this.#begin(name, tag, undefined)
    this.#forgetManifests([entry])
    const answer = await this.#administer(mirror, 'rm', { names: [`${name}:${tag}`] })
    if (answer?.status === 200) this.#acknowledgeRemoval(entry)
    return answer?.status
  }

  /** Does what `mirror registry prune --keep` does in one repository, whose tags nobody else changes. */
  async prune(mirror: MirrorProcess, name: string, keep: number): Promise<number | undefined> {
    const known = [...this.#tags.values()].filter((entry) => entry.name === name)
    const before = known.map(({ may }) => may)
    for (const { tag } of known) this.#begin(name, tag, undefined)
    this.#forgetManifests(known)
    const answer = await this.#administer(mirror, 'prune', { repository: name, olderThan: 0, keep })
    if (answer?.status !== 200) return answer?.status
    const { images } = JSON.parse(answer.body.toString()) as { images: string[] }
    for (const [at, entry] of known.entries())
      if (images.includes(`${name}:${entry.tag}`)) this.#acknowledgeRemoval(entry)
      else entry.may = before[at]!
    return 200
  }

  /** Collects everything that no tag leads to, also what was pushed just now. Nobody may push meanwhile. */
  async collect(mirror: MirrorProcess): Promise<number | undefined> {
    const tagged = new Set<string>()
    for (const { name, may } of this.#tags.values()) {
      const [digest, ...others] = may
      if (digest === undefined || others.length > 0) continue
      for (const blob of this.#images.get(digest)!.blobs.keys()) tagged.add(`/v2/${name}/blobs/${blob}`)
      tagged.add(`/v2/${name}/manifests/${digest}`)
    }
    for (const path of this.#content.keys()) if (!tagged.has(path)) this.#content.delete(path)
    return (await this.#administer(mirror, 'gc', { untagged: true, grace: 0 }))?.status
  }

  #administer(mirror: MirrorProcess, what: string, body: object): Promise<Reply> {
    return readFile(join(mirror.home, 'state', 'token'), 'utf8').then((token) =>
      this.ask(mirror.adminUrl, 'POST', `/api/registry/${what}`, JSON.stringify({ dryRun: false, ...body }), {
        authorization: `Bearer ${token.trim()}`,
        'content-type': 'application/json',
      }),
    )
  }

  #begin(name: string, tag: string, next: Digest | undefined): Tag {
    const path = `/v2/${name}/manifests/${tag}`
    const entry = this.#tags.get(path) ?? { name, tag, may: new Set([undefined]) }
    this.#tags.set(path, entry)
    this.#unchecked.add(path)
    entry.may = new Set([...entry.may, next])
    return entry
  }

  #acknowledge(path: string, digest: Digest): void {
    this.acknowledged += 1
    this.#content.set(path, digest)
    this.#unchecked.add(path)
  }

  #acknowledgeRemoval(entry: Tag): void {
    this.acknowledged += 1
    entry.may = new Set([undefined])
  }

  #forgetManifests(entries: readonly Tag[]): void {
    for (const { name, may } of entries)
      for (const digest of may) this.#content.delete(`/v2/${name}/manifests/${digest}`)
  }

  /** Lists the tags that are known to exist. */
  tagsOf(name: string): string[] {
    const entries = [...this.#tags.values()].filter((entry) => entry.name === name && !entry.may.has(undefined))
    return entries.map(({ tag }) => tag)
  }

  /**
   * Expects that everything acknowledged is there, that nothing acknowledged as removed is, and that each tag leads to a complete
   * image; with `all: false` only of what was changed since the last check, and of the lists of tags. Afterwards each tag may only
   * be what it was found to be, unless `isOpen`: what a server refused may be on the disk until the next change.
   */
  async check(base: string, { all = true, isOpen = false } = {}): Promise<void> {
    const wrong: string[] = []
    const isDue = (path: string) => all || this.#unchecked.has(path)
    for (const [path, digest] of this.#content)
      if (isDue(path) && !(await this.#hasContent(base, path, digest))) wrong.push(`lost: ${path}`)
    for (const [path, entry] of this.#tags) {
      if (!isDue(path)) continue
      const answer = await this.ask(base, 'GET', path)
      const found = answer?.status === 200 ? computeDigest(answer.body) : undefined
      if (answer?.status !== 200 && answer?.status !== 404) wrong.push(`${answer?.status}: ${path}`)
      else if (!entry.may.has(found))
        wrong.push(`${found ?? 'absent'} instead of ${[...entry.may].join(', ')}: ${path}`)
      else if (!isOpen) entry.may = new Set([found])
      for (const blob of (found && this.#images.get(found)?.blobs.keys()) ?? []) {
        const part = `/v2/${entry.name}/blobs/${blob}`
        if (!(await this.#hasContent(base, part, blob))) wrong.push(`half: ${path} without ${blob}`)
      }
    }
    const names = new Set(Array.from(this.#tags.values(), ({ name }) => name))
    for (const name of isOpen ? [] : names) {
      const answer = await this.ask(base, 'GET', `/v2/${name}/tags/list`)
      const { tags = [] } = JSON.parse(answer?.body.toString() ?? '{}') as { tags?: string[] }
      if (tags.toSorted().join() !== this.tagsOf(name).toSorted().join()) wrong.push(`tags of ${name}: ${tags.join()}`)
    }
    if (!isOpen) this.#unchecked.clear()
    expect(wrong).toEqual([])
  }

  async #hasContent(base: string, path: string, digest: Digest): Promise<boolean> {
    const answer = await this.ask(base, 'GET', path)
    return answer?.status === 200 && computeDigest(answer.body) === digest
  }

  /** Sends a request over a connection that is kept. */
  ask(
    base: string,
    method: string,
    path: string,
    body?: Buffer | string,
    headers: Readonly<Record<string, string>> = {},
  ): Promise<Reply> {
    const { hostname, port } = new URL(base)
    const length = body === undefined && method === 'GET' ? {} : { 'content-length': Buffer.byteLength(body ?? '') }
    return new Promise((resolve, reject) => {
      // Expects refused and broken connections: the server is killed.
      const fail = (error: Error) => {
        if (!('code' in error)) reject(error)
        // Asks again when the server has closed an idle connection just now.
        else if (method === 'GET' && asked.reusedSocket) resolve(this.ask(base, method, path, body, headers))
        else resolve(undefined)
      }
      const asked = request(
        { hostname, port, path, method, headers: { ...headers, ...length }, agent: this.#agent },
        (response) => {
          const chunks: Buffer[] = []
          response.on('data', (chunk: Buffer) => chunks.push(chunk))
          response.once('error', fail)
          response.once('end', () => {
            const { statusCode, headers: answered } = response
            resolve({ status: statusCode!, body: Buffer.concat(chunks), location: answered.location })
          })
        },
      )
      asked.once('error', fail).end(body)
    })
  }
}
