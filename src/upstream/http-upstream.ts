import { bareMediaType, largestManifest, manifestAccept } from '../oci/content.ts'
import { parseDigest } from '../oci/digest.ts'
import { nextPageOf } from '../oci/headers.ts'
import { referenceText } from '../oci/reference.ts'
import { numberOf, planBlob, readBlob } from './blob-body.ts'
import { encodingOf } from './content-encoding.ts'
import type { Answer } from './transport.ts'
import { createInquiry, type InquiryOptions, type Question } from './inquiry.ts'
import { holdSmallBody } from './body.ts'
import { type AskOptions, type FetchedList, type Upstream, UpstreamError } from './upstream.ts'

/** An upstream that holds connections. */
export interface HttpUpstream extends Upstream {
  /** Ends every connection; what still runs fails. */
  close(): Promise<void>
}

export type HttpUpstreamOptions = InquiryOptions

/** Bytes. Some registries send the tags of a repository in one, with something about each image. */
const largestTagsList = 16 * 1024 * 1024

/** What registries without the referrers API answer instead of 404, for they take its path for a bad or an unknown one. */
const noReferrers = [400, 405, 501]

/**
 * A registry over HTTP. Throws a MirrorError for a CA or a proxy that cannot be used.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pull
 */
export function createHttpUpstream(options: HttpUpstreamOptions): HttpUpstream {
  const { host } = options
  const inquiry = createInquiry(options)

  function fetchList(
    question: Pick<Question, 'name' | 'path' | 'meansAbsent'>,
    { accept, limit }: { readonly accept: string; readonly limit: number },
    options: AskOptions,
  ): Promise<FetchedList> {
    const asked: Question = { ...options, ...question, method: 'GET', headers: { accept } }
    return inquiry.ask(asked, async ({ answer, identity }) => ({
      ...(await holdSmallBody(answer, limit, host)),
      next: nextPageOf(answer.header('link')),
      filtersApplied: answer.header('oci-filters-applied'),
      identity,
    }))
  }

  return {
    host,
    identity: (access) => inquiry.identity(access),
    health: () => inquiry.health(),
    close: () => inquiry.close(),

    resolve(name, reference, options) {
      const path = `manifests/${referenceText(reference)}`
      const headers = { accept: manifestAccept }
      return inquiry.ask({ ...options, method: 'HEAD', name, path, headers }, ({ answer, identity }) => {
        answer.discard()
        return {
          digest: parseDigest(answer.header('docker-content-digest') ?? ''),
          mediaType: bareMediaType(answer.header('content-type') ?? ''),
          size: sizeOf(answer),
          identity,
        }
      })
    },

    manifest(name, reference, options) {
      const path = `manifests/${referenceText(reference)}`
      const headers = { accept: manifestAccept }
      return inquiry.ask({ ...options, method: 'GET', name, path, headers }, async ({ answer, identity }) => ({
        digest: parseDigest(answer.header('docker-content-digest') ?? ''),
        mediaType: bareMediaType(answer.header('content-type') ?? ''),
        ...(await holdSmallBody(answer, largestManifest, host)),
        identity,
      }))
    },

    statBlob(name, digest, options) {
      return inquiry.ask({ ...options, method: 'HEAD', name, path: `blobs/${digest}` }, ({ answer, identity }) => {
        answer.discard()
        return { size: sizeOf(answer), identity }
      })
    },

    async blob(name, digest, { from, to, expectedSize, ...options }) {
      // Always from the registry, never from where it last redirected to: such links expire.
      const open = (start: number, end: number | undefined) => {
        const isWhole = start === 0 && end === undefined
        const headers: Record<string, string> = isWhole ? {} : { range: `bytes=${start}-${end ?? ''}` }
        return inquiry.ask(
          { ...options, method: 'GET', name, path: `blobs/${digest}`, headers, lane: 'blobs' },
          ({ answer, identity }) => ({ answer, identity, plan: planBlob(answer, from, expectedSize, host) }),
        )
      }
      let opened = await open(from, to)
      if (!opened.plan) {
        opened.answer.discard()
        opened = await open(0, undefined)
      }
      const { answer, identity, plan } = opened
      if (!plan) throw new Error('An answer to a request without a range cannot be a part.')
      const isPart = to !== undefined && answer.status === 206
      return { size: plan.size, isPart, identity, body: readBlob(answer, plan, host) }
    },

    tags(name, query, options) {
      const form = { accept: 'application/json', limit: largestTagsList }
      return fetchList({ name, path: withQuery('tags/list', query) }, form, options)
    },

    async referrers(name, digest, query, options) {
      const path = withQuery(`referrers/${digest}`, query)
      const form = { accept: manifestAccept, limit: largestManifest }
      try {
        return await fetchList({ name, path, meansAbsent: noReferrers }, form, options)
      } catch (error) {
        if (error instanceof UpstreamError && error.failure === 'absent') return undefined
        throw error
      }
    },
  }
}

/** The length of what a GET would bring, unless that would come encoded. */
function sizeOf(answer: Answer): number | undefined {
  return encodingOf(answer) === undefined ? numberOf(answer.header('content-length')) : undefined
}

function withQuery(path: string, query: string): string {
  return query === '' ? path : `${path}?${query}`
}
