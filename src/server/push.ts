import type { IncomingMessage, ServerResponse } from 'node:http'
import { stripMediaType, maxManifestBytes } from '../oci/content.ts'
import { type Digest, type DigestAlgorithm, parseDigest, isTag } from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import type { PushRegistry, UploadChunk, UploadState, User } from '../oci/registry.ts'
import type { Route } from '../oci/route.ts'
import { toUploadHeaders } from '../registry/uploads.ts'
import type { BasicAuth } from './basic-auth.ts'
import { readBody, withSmallBody } from './request-body.ts'
import { sendEmpty } from './respond.ts'

const maxTags = 100
/** Sets the chunk size in bytes below which the request itself costs most. Smaller chunks are accepted too. */
const minUsefulChunkBytes = 1024 * 1024

export interface PushOptions {
  /** Is true if clients may delete. */
  readonly deletes: boolean
  /** Limits the time without a byte of a body, after which the client is disconnected, ms. */
  readonly idle: number
  /** Is undefined when no client needs to log in. */
  readonly authorize: BasicAuth['authorize'] | undefined
  /** Returns whether a client may push and delete, by its connection and its Host header; undefined when every client may. */
  readonly mayWrite?: ((connection: ConnectionEndpoints, host: string | undefined) => boolean) | undefined
}

/** Describes the addresses of both ends of a connection, as `net.Socket` has them. */
export interface ConnectionEndpoints {
  readonly remoteAddress?: string | undefined
  readonly localAddress?: string | undefined
}

/** Describes the result of a push request. */
interface PushResult {
  /** Holds the digest of the manifest that was pushed. */
  readonly manifest?: Digest
}

/**
 * Answers a request that changes the registry or reads the state of an upload; undefined for any other read.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
export async function answerPush(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route,
  options: PushOptions & { readonly registry: PushRegistry },
  user: User,
): Promise<PushResult | undefined> {
  const method = request.method!
  const reads = method === 'GET' || method === 'HEAD'
  // Refuses browsers by their Origin, because any page can submit a form to this registry.
  if (!reads && request.headers.origin !== undefined)
    throw new OciError('DENIED', 403, 'Requests of browsers cannot change this registry.')
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
    throw new OciError('UNSUPPORTED', 405, `${method} is not supported at this path.`, { allow })
  }
  return {}
}

async function putManifest(
  request: IncomingMessage,
  response: ServerResponse,
  route: Extract<Route, { kind: 'manifest' }>,
  { registry, idle }: PushOptions & { readonly registry: PushRegistry },
): Promise<Digest> {
  const { reference, name } = route
  const tags = [...new Set(route.tags)]
  if (tags.length > maxTags) throw new OciError('UNSUPPORTED', 414, `A push can set at most ${maxTags} tags.`)
  if (tags.length > 0 && reference.kind === 'tag')
    throw new OciError('UNSUPPORTED', 400, 'Additional tags are allowed only with a push by digest.')
  if (!tags.every(isTag)) throw new OciError('MANIFEST_INVALID', 400, 'An additional tag is not valid.')
  const type = request.headers['content-type']
  const mediaType = type === undefined ? undefined : stripMediaType(type)
  const { digest, subject } = await withSmallBody(request, { limit: maxManifestBytes, idle }, (bytes) =>
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
  { registry, deletes }: PushOptions & { readonly registry: PushRegistry },
): Promise<void> {
  if (!deletes)
    throw new OciError('UNSUPPORTED', 405, 'Deleting is disabled: see "registry.deletes" in mirror.yaml.', {
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

interface UploadOptions {
  readonly registry: PushRegistry
  /** Limits the time without a byte of a body, after which the client is disconnected, ms. */
  readonly idle: number
  readonly user: User
}

type UploadsRoute = Extract<Route, { kind: 'uploads' }>

type UploadRoute = Extract<Route, { kind: 'upload' }>

/** Answers the requests of an upload. https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-blobs */
async function answerUpload(
  request: IncomingMessage,
  response: ServerResponse,
  route: UploadsRoute | UploadRoute,
  options: UploadOptions,
): Promise<void> {
  const { registry, idle, user } = options
  if (route.kind === 'uploads') {
    if (request.method !== 'POST') throw createNotAllowedError(request, 'POST')
    return beginUpload(request, response, route, options)
  }
  const { id, name } = route
  const upload = { id, user }
  const sendState = (status: number, state: UploadState) =>
    sendEmpty(response, status, toUploadHeaders({ repository: name, ...pick(state) }))
  switch (request.method) {
    case 'GET':
    case 'HEAD':
      return sendState(204, registry.uploadState(route, upload))
    case 'PATCH':
      return sendState(202, await registry.appendUpload(route, upload, readChunk(request, idle)))
    case 'PUT': {
      registry.uploadState(route, upload)
      const digest = parseRequiredDigest(route.wanted.digest)
      await registry.finishUpload(route, upload, digest, readChunk(request, idle))
      return sendPublished(response, name, digest)
    }
    case 'DELETE':
      await registry.cancelUpload(route, upload)
      return sendEmpty(response, 204, {})
    default:
      throw createNotAllowedError(request, 'GET, HEAD, PATCH, PUT, DELETE')
  }
}

/** Answers a POST: a mount, a whole blob, or the start of an upload. A mount that is not possible starts an upload. */
async function beginUpload(
  request: IncomingMessage,
  response: ServerResponse,
  route: UploadsRoute,
  { registry, idle, user }: UploadOptions,
): Promise<void> {
  const { name, wanted } = route
  if (wanted.mount !== undefined) {
    const digest = parseRequiredDigest(wanted.mount)
    if (await registry.mountBlob(route, digest, wanted.from)) return sendPublished(response, name, digest)
  } else if (wanted.digest !== undefined) {
    const digest = parseRequiredDigest(wanted.digest)
    await registry.putBlob(route, digest, readChunk(request, idle))
    return sendPublished(response, name, digest)
  }
  const state = await registry.startUpload(route, user, parseAlgorithm(wanted.algorithm))
  const headers = toUploadHeaders({ repository: name, ...pick(state) })
  sendEmpty(response, 202, { ...headers, 'oci-chunk-min-length': String(minUsefulChunkBytes) })
}

function sendPublished(response: ServerResponse, name: string, digest: Digest): void {
  sendEmpty(response, 201, { location: `/v2/${name}/blobs/${digest}`, 'docker-content-digest': digest })
}

function pick({ id, size }: UploadState): UploadState {
  return { id, size }
}

/** Reads the body and its offset. Throws an OciError 400 for a Content-Range that is malformed or does not match the body. */
function readChunk(request: IncomingMessage, idle: number): UploadChunk {
  const header = request.headers['content-range']
  const bytes = readBody(request, idle)
  if (header === undefined) return { start: undefined, bytes }
  const match = /^(?:bytes )?(\d+)-(\d+)(?:\/(?:\d+|\*))?$/.exec(header.trim())
  const [start, end] = match ? [Number(match[1]), Number(match[2])] : [NaN, NaN]
  const length = request.headers['content-length']
  if (!Number.isSafeInteger(start) || !Number.isSafeInteger(end) || end < start)
    throw new OciError('BLOB_UPLOAD_INVALID', 400, 'The Content-Range does not have the form first-last.')
  if (length !== undefined && Number(length) !== end - start + 1)
    throw new OciError('SIZE_INVALID', 400, 'The Content-Range and the Content-Length do not agree.')
  return { start, bytes: checkLength(bytes, end - start + 1) }
}

/** Passes the bytes through. Throws an OciError 400 when they are more or fewer than `length`. */
async function* checkLength(bytes: AsyncIterable<Uint8Array>, length: number): AsyncGenerator<Uint8Array, void> {
  let left = length
  for await (const chunk of bytes) {
    left -= chunk.length
    if (left < 0) throw new OciError('SIZE_INVALID', 400, 'The body is longer than its Content-Range.')
    yield chunk
  }
  if (left > 0) throw new OciError('SIZE_INVALID', 400, 'The body is shorter than its Content-Range.')
}

function parseRequiredDigest(text: string | undefined): Digest {
  const digest = text === undefined ? undefined : parseDigest(text)
  if (digest) return digest
  const why = text === undefined ? 'The query parameter digest is missing.' : 'The digest is not valid.'
  throw new OciError('DIGEST_INVALID', 400, why)
}

function parseAlgorithm(text: string | undefined): DigestAlgorithm | undefined {
  if (text === undefined || text === 'sha256' || text === 'sha512') return text
  throw new OciError('DIGEST_INVALID', 400, 'The digest algorithm is neither sha256 nor sha512.')
}

function createNotAllowedError(request: IncomingMessage, allow: string): OciError {
  return new OciError('UNSUPPORTED', 405, `${request.method} is not supported at this path.`, { allow })
}
