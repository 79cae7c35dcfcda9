import { computeDigest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { Content, type ImageOptions } from './content.ts'

const exampleTypes = [
  'application/vnd.example.oci.conformance.v1',
  'application/vnd.example.oci.conformance.v2',
] as const
const emptyJson = { mediaType: 'application/vnd.oci.empty.v1+json', bytes: Buffer.from('{}') }
const annotations = { 'org.opencontainers.conformance': 'hello conformance test' }

const artifact = (type: string = exampleTypes[0]): ImageOptions => ({
  artifactType: type,
  config: emptyJson,
  layers: [2048],
  layerType: type,
})

function make(fill: (content: Content) => void, options: ConstructorParameters<typeof Content>[0] = {}): Content {
  const content = new Content(options)
  fill(content)
  return content
}

/** contentSets are the suite's sets of data, as its GenerateData creates and names them. */
export const contentSets: Readonly<Record<string, () => Content>> = {
  Image: () => make((content) => content.image({ tag: 'image' })),
  'Image Uncompressed': () =>
    make((content) =>
      content.image({ tag: 'image-uncompressed', layerType: 'application/vnd.oci.image.layer.v1.tar' }),
    ),
  'Image with Large Manifest': () =>
    make((content) => {
      const large = Array.from({ length: 390 }, (_, at) => [`large-annotation-${at}`, 'A'.repeat(10_000)])
      content.image({ tag: 'large-manifest', annotations: Object.fromEntries(large) as Record<string, string> })
    }),
  Index: () => make((content) => content.platforms({ tag: 'index' })),
  'Nested Index': () =>
    make((content) => content.index([content.platforms(), content.platforms()], { tag: 'index-of-index' })),
  'Empty Index': () => make((content) => content.index([], { tag: 'index' })),
  Artifact: () => make((content) => content.image({ ...artifact(), tag: 'artifact' })),
  'Artifact Index': () => make((content) => content.platforms({ ...artifact(), tag: 'artifact-index' })),
  'Artifact without Layers': () =>
    make((content) =>
      content.image({
        ...artifact(),
        layers: [emptyJson.bytes],
        layerType: emptyJson.mediaType,
        tag: 'artifact-without-layers',
      }),
    ),
  'Artifacts with Subject': () =>
    make((content) => {
      const subject = content.image({ tag: 'image' })
      content.image({ subject })
      for (const [at, type] of exampleTypes.entries())
        content.image({ ...artifact(type), annotations, subject, tag: `tagged-artifact${at + 1}` })
    }),
  'Index with Subject': () =>
    make((content) => {
      const subject = content.platforms({ tag: 'index' })
      content.platforms({ ...artifact(), annotations, subject, tag: 'tagged-artifact' })
    }),
  'Missing Subject': () =>
    make((content) => {
      const digest = computeDigest(Buffer.from('missing content'))
      const subject = { mediaType: mediaType.ociManifest, size: 123, digest }
      content.image({ ...artifact(), annotations, subject, tag: 'tagged-artifact' })
    }),
  'Data Field': () => make((content) => content.image({ tag: 'data-field' }), { data: true }),
  'Non-distributable Layers': () =>
    make((content) => {
      const layers = ['tar+gzip', 'tar'].map((form) => {
        const digest = computeDigest(content.bytes(256))
        const urls = [`https://store.example.com/blobs/sha256/${digest.slice('sha256:'.length)}`]
        return { mediaType: `application/vnd.oci.image.layer.nondistributable.v1.${form}`, digest, size: 12_345, urls }
      })
      content.image({ layers: [...layers, 300], tag: 'non-distributable-image' })
    }),
  'Custom Fields': () => make((content) => content.platforms({ tag: 'custom-fields' }), { extraField: true }),
  'No Layers': () => make((content) => content.image({ layers: [], tag: 'no-layers' })),
  'Digest Algorithm sha512': () => make((content) => content.platforms(), { algorithm: 'sha512' }),
  'Tag Param': () => make(tagAll('tag-param-sha256'), { tagsByParameter: true }),
  'Tag Param sha512': () => make(tagAll('tag-param-sha512'), { tagsByParameter: true, algorithm: 'sha512' }),
}

/** Adds two tags to the topmost manifest, and one to each of the others. */
function tagAll(name: string): (content: Content) => void {
  return (content) => {
    content.platforms({ tag: name })
    for (const [at, { digest }] of content.manifests.entries()) content.tags.set(`${name}-${at}`, digest)
  }
}
