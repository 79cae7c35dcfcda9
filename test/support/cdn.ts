import { randomUUID } from 'node:crypto'
import { ranged } from './byte-range.ts'
import { startFaultyServer, type FaultyServer } from './faulty-server.ts'

/** A blob store to which registries redirect. */
export interface Cdn extends FaultyServer {
  /** Returns a presigned URL for a body. It is valid for `uses` requests and `livesFor` ms; default: one request. */
  sign(body: Buffer, options?: { readonly uses?: number; readonly livesFor?: number }): string
}

/** Starts a CDN until the test ends. Like S3, it answers 400 to a request with both a signature and an Authorization. */
export async function startCdn(): Promise<Cdn> {
  const signed = new Map<string, { body: Buffer; uses: number; diesAt: number }>()
  const server = await startFaultyServer((request) => {
    if (request.headers.authorization !== undefined) return xmlError(400, 'InvalidArgument')
    const signature = new URL(request.url!, 'http://cdn.invalid').searchParams.get('X-Amz-Signature')
    const grant = signed.get(signature ?? '')
    if (!grant || grant.uses < 1 || grant.diesAt < performance.now()) return xmlError(403, 'AccessDenied')
    grant.uses -= 1
    return ranged(request, grant.body, { 'content-type': 'binary/octet-stream' })
  })
  return Object.assign(server, {
    sign(body: Buffer, { uses = 1, livesFor = Infinity } = {}) {
      const signature = randomUUID()
      signed.set(signature, { body, uses, diesAt: performance.now() + livesFor })
      return `${server.url}/bucket/blob?X-Amz-Credential=key-of-the-cdn&X-Amz-Signature=${signature}`
    },
  })
}

function xmlError(status: number, code: string) {
  const body = Buffer.from(`<?xml version="1.0"?><Error><Code>${code}</Code></Error>`)
  return { status, headers: { 'content-type': 'application/xml' }, body }
}
