import { computeDigest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { emptyConfig } from '../../support/large-manifest.ts'

/** Joins copies of the text by commas, each with its number in place of `#`. */
const repeat = (text: string, count: number) =>
  Array.from({ length: count }, (_, at) => text.replace('#', String(at))).join()
const descriptor = (type: string) => `{"mediaType":"${type}","digest":"${computeDigest(emptyConfig)}","size":2}`
const layer = descriptor(mediaType.ociLayerGzip)
const start = `"schemaVersion":2,"mediaType":"${mediaType.ociManifest}","config":${descriptor(mediaType.ociConfig)}`

/**
 * jsonBombs are JSON texts of about 4 MB that are slow to parse or large in memory. `status`: the answer of a registry that has
 * `emptyConfig` to a push of the text as a manifest.
 */
export const jsonBombs: Readonly<Record<string, { readonly text: string; readonly status: 201 | 400 }>> = {
  'nested lists': { text: '['.repeat(4_000_000), status: 400 },
  'nested objects': { text: `{${start},"a":${'{"a":'.repeat(700_000)}`, status: 400 },
  'a million empty objects': { text: `{${start},"a":[${repeat('{}', 1_000_000)}]}`, status: 400 },
  '330,000 keys': { text: `{${start},"a":{${repeat('"k#":1', 330_000)}}}`, status: 400 },
  'one key 600,000 times': { text: `{${start},"a":{${repeat('"k":1', 600_000)}}}`, status: 400 },
  '600,000 numbers': { text: `{${start},"a":[${repeat('12345', 600_000)}]}`, status: 400 },
  'one text of 4 MB': { text: `{${start},"a":"${'x'.repeat(4_000_000)}"}`, status: 201 },
  '4 MB of escapes': { text: `{${start},"a":"${'\\u0041'.repeat(650_000)}"}`, status: 201 },
  '23,000 layers': { text: `{${start},"layers":[${repeat(layer, 23_000)}]}`, status: 201 },
  '90,000 objects, each with a key of its own': { text: `{${start},"a":[${repeat('{"k#":1}', 90_000)}]}`, status: 201 },
}
