import { silentLogger } from '../../src/lib/logger.ts'
import { systemClock } from '../../src/lib/time.ts'
import { MetadataLog } from '../../src/metadata/log.ts'
import type { Operation, Repository, Tag } from '../../src/metadata/metadata.ts'
import { MetadataStore } from '../../src/metadata/metadata-store.ts'
import { packLinks } from '../../src/metadata/operations.ts'
import { Repositories } from '../../src/metadata/repositories.ts'
import type { ManifestLink } from '../../src/oci/content.ts'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { anonymousIdentity, type Identity } from '../../src/oci/registry.ts'

/** Creates an empty metadata store that stays in memory. */
export function createMemoryMetadata(): MetadataStore {
  const log = new MetadataLog('/none')
  const loaded = { repositories: new Repositories(false), log, sequence: 0, damage: [], unreadable: [] }
  const options = {
    isReadOnly: true,
    isNew: async () => true,
    setAside: () => '/none',
    logger: silentLogger,
    clock: systemClock,
  }
  return new MetadataStore(loaded, options)
}

/** Returns a digest that stands for a name. */
export function digestFor(name: string): Digest {
  return computeDigest(Buffer.from(name))
}

/** Changes one repository by operations. */
export interface TestRepository {
  readonly host: string
  readonly name: string
  /** Shows the repository as it is now. Throws while it has no entries. */
  readonly current: Repository
  apply(...operations: Operation[]): void
}

/** Prepares a repository of a store, or of `Repositories`. It begins to exist with its first entry. */
export function createTestRepository(
  { name = 'library/app', host = 'docker.io' } = {},
  source: MetadataStore | Repositories = new Repositories(false),
): TestRepository {
  return {
    host,
    name,
    get current() {
      const repository = source.get(host, name)
      if (!repository) throw new Error(`${host}/${name} has no entries`)
      return repository
    },
    apply(...operations) {
      if (source instanceof MetadataStore) void source.commit({ host, name }, operations, 'soon')
      else for (const operation of operations) source.apply(host, name, operation)
    },
  }
}

interface ManifestOptions {
  readonly mediaType?: string
  readonly identity?: Identity
  readonly links?: readonly ManifestLink[]
  readonly pulls?: number
  readonly lastPulled?: number
  readonly usedAt?: number
}

/** Creates the operation that sets a manifest. */
export function setManifest(digest: Digest, options: ManifestOptions = {}): Operation {
  const { mediaType = 'application/vnd.oci.image.manifest.v1+json', identity = anonymousIdentity } = options
  const { links = [], pulls = 0, lastPulled = 0, usedAt = 0 } = options
  const rest = { updatedAt: 0, pulls, lastPulled, usedAt, links: packLinks(links) }
  return { op: 'manifest', digest, mediaType, size: 1, identity, ...rest }
}

/** Creates the operation that sets a tag. */
export function setTag(tag: string, digest: Digest, options: Partial<Omit<Tag, 'digest'>> = {}): Operation {
  const unused = { identity: anonymousIdentity, updatedAt: 0, pulls: 0, lastPulled: 0 }
  return { op: 'tag', tag, digest, ...unused, ...options }
}

/** Adds a manifest, whose digest stands for the name, with its children, blobs and tags. */
export function addManifest(
  repository: TestRepository,
  name: string,
  content: Omit<ManifestOptions, 'links'> & { tags?: string[]; manifests?: string[]; blobs?: string[] },
): void {
  const link = (kind: 'manifest' | 'blob') => (child: string) => ({
    kind,
    mediaType: 'application/octet-stream',
    digest: digestFor(child),
    size: 1,
  })
  const { tags = [], manifests = [], blobs = [], ...rest } = content
  const links = [...manifests.map(link('manifest')), ...blobs.map(link('blob'))]
  repository.apply(setManifest(digestFor(name), { ...rest, links }), ...tags.map((tag) => setTag(tag, digestFor(name))))
}

/** Records the use of a manifest at a time. */
export function useManifest(repository: TestRepository, name: string, usedAt: number): void {
  const digest = digestFor(name)
  const { pulls, lastPulled } = repository.current.manifests.get(digest)!
  repository.apply({ op: 'use-manifest', digest, pulls, lastPulled, usedAt })
}

/** Converts the sizes of published blobs by name to sizes by digest. */
export function sizesOf(sizes: Record<string, number>): Map<Digest, number> {
  return new Map(Object.entries(sizes).map(([name, size]) => [digestFor(name), size]))
}
