import { redact } from '../lib/logger.ts'

/**
 * Lists the error codes of the distribution specification, and two more (UNAVAILABLE, UNKNOWN) for 5xx responses, for which it has
 * none.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#error-codes
 */
export type OciErrorCode =
  | 'BLOB_UNKNOWN'
  | 'BLOB_UPLOAD_INVALID'
  | 'BLOB_UPLOAD_UNKNOWN'
  | 'DIGEST_INVALID'
  | 'MANIFEST_BLOB_UNKNOWN'
  | 'MANIFEST_INVALID'
  | 'MANIFEST_UNKNOWN'
  | 'NAME_INVALID'
  | 'NAME_UNKNOWN'
  | 'SIZE_INVALID'
  | 'UNAUTHORIZED'
  | 'DENIED'
  | 'UNSUPPORTED'
  | 'TOOMANYREQUESTS'
  | 'UNAVAILABLE'
  | 'UNKNOWN'

/** Reports a failure to the client as an HTTP status and the specification's JSON body. */
export class OciError extends Error {
  override name = 'OciError'
  readonly code: OciErrorCode
  readonly status: number
  /** Holds extra response headers, lower-case names (`retry-after`, `content-range` …). */
  readonly headers: Readonly<Record<string, string>>

  constructor(code: OciErrorCode, status: number, message: string, headers: Record<string, string> = {}) {
    super(message)
    this.code = code
    this.status = status
    this.headers = headers
  }

  /** Returns the response body, `{"errors":[{"code","message"}]}`, with secrets redacted. */
  body(): string {
    return JSON.stringify({ errors: [{ code: this.code, message: redact(this.message) }] })
  }
}
