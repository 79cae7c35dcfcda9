/** https://github.com/opencontainers/image-spec/blob/v1.1.1/media-types.md and Docker's own v2 types. */
export const mediaType = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociLayerGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
  dockerLayer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
  octetStream: 'application/octet-stream',
} as const

/** What we accept as a manifest from an upstream: every current type, never schema 1. */
export const manifestAccept = [
  mediaType.ociIndex,
  mediaType.ociManifest,
  mediaType.dockerList,
  mediaType.dockerManifest,
  'application/vnd.oci.artifact.manifest.v1+json',
].join(', ')

/** Layers whose content a registry need not hold; nobody follows their `urls`. */
export function isForeignLayer(type: string): boolean {
  return type.includes('.foreign.') || type.includes('.nondistributable.')
}

/**
 * Whether something may be served as a manifest of this type: `application/…` as RFC 6838 §4.2 writes it, without parameters, and
 * nothing that a browser shows or runs.
 */
export function isManifestType(type: string): boolean {
  return /^application\/[a-z\d][a-z\d!#$&^_.+-]{0,126}$/i.test(type) && !/(?:xml|pdf|script)$/i.test(type)
}

/** A Content-Type without its parameters, in lower case. */
export function bareMediaType(contentType: string): string {
  return contentType.split(';', 1)[0]!.trim().toLowerCase()
}
