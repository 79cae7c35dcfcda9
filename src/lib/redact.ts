const secretParameter =
  /([?&](?:X-Amz-[^=&]*|Signature|Policy|Key-Pair-Id|sig|token|access_token|refresh_token|password|AWSAccessKeyId|Expires|se|sp|sv|skoid)=)[^&\s"']*/gi
const bearer = /\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}/g
const userInfo = /(\bhttps?:\/\/)[^/\s@"']+@/g

/** The text without what could be a secret: URL credentials, signed query parameters, authorization values. */
export function redact(text: string): string {
  return text.replace(userInfo, '$1…@').replace(secretParameter, '$1…').replace(bearer, '$1 …')
}
