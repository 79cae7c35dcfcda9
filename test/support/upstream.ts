import type { IncomingMessage } from 'node:http'
import { createAuth, type AuthOptions } from './upstream-auth.ts'
import { ranged } from './byte-range.ts'
import { startFaultyServer, type FaultyServer, type Match, type Reply } from './faulty-server.ts'
import type { TestImage } from './images.ts'

export interface UpstreamOptions {
  /** Images by repository and tag. */
  readonly images?: Readonly<Record<string, Readonly<Record<string, TestImage>>>>
  readonly auth?: AuthOptions
}

/** A registry that faults can break while it runs; see faults.ts. */
export interface TestUpstream extends FaultyServer {
  push(name: string, tag: string, image: TestImage): void
  /** Removes a tag, or the whole repository. */
  remove(name: string, tag?: string): void
}

/** Requests that tests break and count. */
export const anyBlob: Match = { method: 'GET', path: /\/blobs\// }
export const anyManifest: Match = { method: 'GET', path: /\/manifests\// }
export const anyManifestHead: Match = { method: 'HEAD', path: /\/manifests\// }
export const anyToken: Match = { path: /^\/token/ }

interface Repository {
  readonly tags: Map<string, TestImage>
  readonly manifests: Map<string, { readonly mediaType: string; readonly bytes: Buffer }>
  readonly blobs: Map<string, Buffer>
}

/** Starts a read-only registry on a free loopback port, until the test ends. */
export async function startUpstream(options: UpstreamOptions = {}): Promise<TestUpstream> {
  const repositories = new Map<string, Repository>()
  const auth = options.auth && createAuth(options.auth, () => server.url)

  function answer(request: IncomingMessage): Reply {
    const { pathname, searchParams } = new URL(request.url!, 'http://upstream.invalid')
    if (pathname === '/token' && auth) return auth.token(request)
    const [, name, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs|tags|referrers)\/([^/]+)$/.exec(pathname) ?? []
    const refusal = auth?.refuse(request, name)
    if (refusal) return refusal
    if (pathname === '/v2/') return { status: 200, body: Buffer.from('{}') }

    const repository = repositories.get(name ?? '')
    if (!repository || reference === undefined) return absent('NAME_UNKNOWN')
    if (kind === 'manifests') {
      const manifest = repository.tags.get(reference) ?? repository.manifests.get(reference)
      return manifest ? manifestReply(repository, reference, manifest) : absent('MANIFEST_UNKNOWN')
    }
    if (kind === 'blobs') {
      const blob = repository.blobs.get(reference)
      if (!blob) return absent('BLOB_UNKNOWN')
      return ranged(request, blob, {
        'content-type': 'application/octet-stream',
        'docker-content-digest': reference,
        'accept-ranges': 'bytes',
      })
    }
    return kind === 'tags' ? tagsReply(name!, repository, searchParams) : absent('NOT_FOUND')
  }

  const server = await startFaultyServer(answer)
  const upstream: TestUpstream = Object.assign(server, {
    push(name: string, tag: string, image: TestImage) {
      const empty: Repository = { tags: new Map(), manifests: new Map(), blobs: new Map() }
      const repository = repositories.get(name) ?? empty
      repositories.set(name, repository)
      repository.tags.set(tag, image)
      for (const [digest, manifest] of image.manifests) repository.manifests.set(digest, manifest)
      for (const [digest, blob] of image.blobs) repository.blobs.set(digest, blob)
    },
    remove(name: string, tag?: string) {
      if (tag === undefined) repositories.delete(name)
      else repositories.get(name)?.tags.delete(tag)
    },
  })
  for (const [name, tags] of Object.entries(options.images ?? {})) {
    for (const [tag, image] of Object.entries(tags)) upstream.push(name, tag, image)
  }
  return upstream
}

function manifestReply(
  { tags }: Repository,
  reference: string,
  { mediaType, bytes }: { mediaType: string; bytes: Buffer },
): Reply {
  const digest = tags.get(reference)?.digest ?? reference
  return {
    status: 200,
    headers: { 'content-type': mediaType, 'docker-content-digest': digest, etag: `"${digest}"` },
    body: bytes,
  }
}

/** Lists tags. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags */
function tagsReply(name: string, { tags }: Repository, query: URLSearchParams): Reply {
  const last = query.get('last') ?? ''
  const count = Number(query.get('n') ?? Infinity)
  const rest = [...tags.keys()].toSorted().filter((tag) => tag > last)
  const page = rest.slice(0, count)
  const link =
    rest.length > page.length ? { link: `</v2/${name}/tags/list?n=${count}&last=${page.at(-1)}>; rel="next"` } : {}
  return {
    status: 200,
    headers: { 'content-type': 'application/json', ...link },
    body: Buffer.from(JSON.stringify({ name, tags: page })),
  }
}

function absent(code: string): Reply {
  const body = Buffer.from(JSON.stringify({ errors: [{ code, message: 'not here' }] }))
  return { status: 404, headers: { 'content-type': 'application/json' }, body }
}
