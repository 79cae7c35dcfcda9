import { digestOf } from '../oci/digest.ts'

/** Characters of the longest media type. https://www.rfc-editor.org/rfc/rfc6838#section-4.2 */
const longestType = 255

/** What an artifact type is known by in memory: itself, or the digest of one that is no media type for its length. */
export function artifactTypeKey(type: string): string {
  return type.length <= longestType ? type : digestOf(Buffer.from(type))
}
