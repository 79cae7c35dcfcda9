import { parseDigest, type Digest } from './digest.ts'
import { isTag } from './name.ts'

/** What stands after `/manifests/`: a mutable tag or an immutable digest. */
export type Reference =
  | { readonly kind: 'tag'; readonly tag: string }
  | { readonly kind: 'digest'; readonly digest: Digest }

export function parseReference(text: string): Reference | undefined {
  if (text.includes(':')) {
    const digest = parseDigest(text)
    return digest && { kind: 'digest', digest }
  }
  return isTag(text) ? { kind: 'tag', tag: text } : undefined
}

/** The reference as it stands in a URL. */
export function referenceText(reference: Reference): string {
  return reference.kind === 'tag' ? reference.tag : reference.digest
}
