import type { IncomingMessage, ServerResponse } from 'node:http'
import { bareMediaType, largestManifest } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import { OciError } from '../oci/errors.ts'
import { isTag } from '../oci/reference.ts'
import type { PushRegistry, User } from '../oci/registry.ts'
import type { Route } from '../oci/route.ts'
import type { BasicAuth } from './basic-auth.ts'
import { withSmallBody } from './request-body.ts'
import { sendEmpty } from './respond.ts'
import { answerUpload } from './push.ts'

export interface PushOptions {
  readonly registry: PushRegistry
  /** Whether clients may delete. */
  readonly deletes: boolean
  /** A body that brings nothing for so long is given up; ms. */
  readonly idle: number
  /** Undefined when everybody may do everything. */
  readonly authorize: BasicAuth['authorize'] | undefined
  /** Whether the client behind a connection may push and delete, by the Host that it asks for; undefined when every client may. */
  readonly mayWrite?: ((connection: ConnectionEnds, host: string | undefined) => boolean) | undefined
}

/** The two ends of a connection, as `net.Socket` has them. */
export interface ConnectionEnds {
  readonly remoteAddress?: string | undefined
  readonly localAddress?: string | undefined
}

const mostTags = 100

/** What a request has brought. */
export interface Pushed {
  /** The manifest that is in the registry now. */
  readonly manifest?: Digest
}

/**
 * Answers a request that changes something, or asks for the state of an upload; undefined for one that only reads.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
export async function answerPush(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route,
  options: PushOptions,
  user: User,
): Promise<Pushed | undefined> {
  const method = request.method!
  const reads = method === 'GET' || method === 'HEAD'
  // A page in a browser may send a form anywhere; its Origin gives it away.
  if (!reads && request.headers.origin !== undefined)
    throw new OciError('DENIED', 403, 'Browsers may not change anything here.')
  const isUpload = route.kind === 'uploads' || route.kind === 'upload'
  if ((!reads || isUpload) && options.mayWrite?.(request.socket, request.headers.host) === false) throw pullOnly()
  if (isUpload) {
    await answerUpload(request, response, route, { ...options, user })
    return {}
  }
  if (reads) return undefined
  if (route.kind === 'manifest' && method === 'PUT')
    return { manifest: await putManifest(request, response, route, options) }
  if ((route.kind === 'manifest' || route.kind === 'blob') && method === 'DELETE')
    await answerDelete(response, route, options)
  else {
    const allow = { manifest: 'GET, HEAD, PUT, DELETE', blob: 'GET, HEAD, DELETE' }[route.kind as string] ?? 'GET, HEAD'
    throw new OciError('UNSUPPORTED', 405, `There is nothing to ${method} at this path.`, { allow })
  }
  return {}
}

async function putManifest(
  request: IncomingMessage,
  response: ServerResponse,
  route: Extract<Route, { kind: 'manifest' }>,
  { registry, idle }: PushOptions,
): Promise<Digest> {
  const { reference, name } = route
  const tags = [...new Set(route.tags)]
  if (tags.length > mostTags)
    throw new OciError('UNSUPPORTED', 414, `More than ${mostTags} tags do not fit into one push.`)
  if (tags.length > 0 && reference.kind === 'tag')
    throw new OciError('UNSUPPORTED', 400, 'Tags besides can be set with a push by digest only.')
  if (!tags.every(isTag)) throw new OciError('MANIFEST_INVALID', 400, 'A tag besides is none.')
  const type = request.headers['content-type']
  const mediaType = type === undefined ? undefined : bareMediaType(type)
  const { digest, subject } = await withSmallBody(request, { limit: largestManifest, idle }, (bytes) =>
    registry.putManifest(route, reference, { mediaType, bytes, tags }),
  )
  sendEmpty(response, 201, {
    location: `/v2/${name}/manifests/${digest}`,
    'docker-content-digest': digest,
    ...(subject === undefined ? {} : { 'oci-subject': subject }),
    ...(tags.length === 0 ? {} : { 'oci-tag': tags.join(', ') }),
  })
  return digest
}

async function answerDelete(
  response: ServerResponse,
  route: Extract<Route, { kind: 'manifest' | 'blob' }>,
  { registry, deletes }: PushOptions,
): Promise<void> {
  if (!deletes)
    throw new OciError('UNSUPPORTED', 405, 'Deleting is switched off: "registry.deletes" in mirror.yaml.', {
      allow: 'GET, HEAD, PUT',
    })
  if (route.kind === 'manifest') await registry.deleteManifest(route, route.reference)
  else await registry.deleteBlob(route, route.digest)
  sendEmpty(response, 202, {})
}

function pullOnly(): OciError {
  return new OciError(
    'DENIED',
    403,
    'Containers may only pull from this registry. To let them push and delete, set "registry.networks: write" in mirror.yaml.',
  )
}
