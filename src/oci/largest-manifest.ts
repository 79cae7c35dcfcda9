/**
 * 4 MiB, in bytes: what registries are asked to take, and all that clients read (decision D4).
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests
 */
export const largestManifest = 4 * 1024 * 1024
