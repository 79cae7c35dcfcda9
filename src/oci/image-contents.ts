import type { Descriptor } from './descriptor.ts'
import { digestOf, type Digest } from './digest.ts'

/** What an image that is made here consists of, by digest: as a registry serves it. */
export class ImageContents {
  readonly blobs = new Map<Digest, Uint8Array>()
  readonly manifests = new Map<Digest, { readonly mediaType: string; readonly bytes: Uint8Array<ArrayBuffer> }>()

  /** Adds a layer or a config; the result names it in a manifest. */
  addBlob(mediaType: string, bytes: Uint8Array): Descriptor {
    const digest = digestOf(bytes)
    this.blobs.set(digest, bytes)
    return { mediaType, digest, size: bytes.length }
  }

  /** Adds a manifest or an index with this content; the result names it in an index. */
  addManifest(mediaType: string, content: object): Descriptor {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, ...content }))
    const digest = digestOf(bytes)
    this.manifests.set(digest, { mediaType, bytes })
    return { mediaType, digest, size: bytes.length }
  }
}
