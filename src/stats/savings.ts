import { writeFileAtomic } from '../lib/fs.ts'
import { readJsonFile } from '../lib/json.ts'
import { cutText } from './requests.ts'

/** Limits the images that are counted; those without a pull for the longest time are forgotten. */
const maxImages = 5000
/** Limits the characters of an image name, which has a registry, a repository, and a tag or digest. */
const maxNameLength = 700
const maxFileBytes = 16 * 1024 * 1024

/** Counts for each image the bytes that clients got and no upstream sent. With a damaged file it starts with none. */
export class ImageSavings {
  /** Maps names as `docker.io/library/alpine:3.20` or `…@sha256:…` to bytes; the last pulled image is the last. */
  readonly #bytes = new Map<string, number>()
  #isSaved = true

  record(image: string, bytes: number): void {
    if (bytes <= 0 || image.length > maxNameLength) return
    const saved = this.get(image) + bytes
    this.#bytes.delete(image)
    const [oldest] = this.#bytes.keys()
    if (this.#bytes.size >= maxImages && oldest !== undefined) this.#bytes.delete(oldest)
    this.#bytes.set(cutText(image, maxNameLength), saved)
    this.#isSaved = false
  }

  /** Returns the bytes that pulls of an image saved so far. */
  get(image: string): number {
    return this.#bytes.get(image) ?? 0
  }

  async load(path: string): Promise<void> {
    const { images } = (await readJsonFile(path, maxFileBytes)) ?? {}
    if (!Array.isArray(images)) return
    for (const entry of (images as unknown[]).slice(-maxImages)) {
      const [image, bytes] = Array.isArray(entry) ? (entry as unknown[]) : []
      if (typeof image === 'string' && Number.isSafeInteger(bytes)) this.record(image, bytes as number)
    }
    this.#isSaved = true
  }

  /** Writes the counters to a file when a pull came since the last time. */
  async save(path: string): Promise<void> {
    if (this.#isSaved) return
    this.#isSaved = true
    try {
      await writeFileAtomic(path, JSON.stringify({ images: [...this.#bytes] }))
    } catch (error) {
      this.#isSaved = false
      throw error
    }
  }
}
