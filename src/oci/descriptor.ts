import type { Digest } from './digest.ts'

/** Content by its digest. https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md */
export interface Descriptor {
  readonly mediaType: string
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
}

/** What a manifest names, and where a registry serves it from: `/manifests/` or `/blobs/`. */
export interface ManifestLink extends Descriptor {
  readonly kind: 'manifest' | 'blob'
}
