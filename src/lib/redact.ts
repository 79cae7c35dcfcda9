const secretParameter =
  /([?&](?:X-Amz-[^=&]*|X-Goog-[^=&]*|GoogleAccessId|Signature|verify|Policy|Key-Pair-Id|sig|token|access_token|refresh_token|password|AWSAccessKeyId|Expires|se|sp|sv|skoid)=)[^&\s"']*/gi
const bearer = /\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}/g
const userInfo = /(\b(?:https?|socks[45]?[ah]?):\/\/)[^/\s@"']+@/gi

/** Without one of these there is nothing to strike out: most of what is logged is looked at once, not three times. */
const suspicious = /[@=]|Bearer|Basic/

/** The text without what could be a secret: URL credentials, signed query parameters, authorization values. */
export function redact(text: string): string {
  if (!suspicious.test(text)) return text
  return text.replace(userInfo, '$1…@').replace(secretParameter, '$1…').replace(bearer, '$1 …')
}
