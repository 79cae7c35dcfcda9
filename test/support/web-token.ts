/** Creates a JSON Web Token; no test checks its signature. */
export function webToken(claims: object, header: object = { alg: 'RS256', typ: 'JWT' }): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString('base64url')
  return `${encode(header)}.${encode(claims)}.c2ln`
}
