import { parseChallenges } from '../oci/headers.ts'
import type { Answer } from './transport.ts'
import type { BearerChallenge } from './tokens.ts'

/** What a 401 answer asks for. */
export type Challenge =
  | ({ readonly scheme: 'bearer'; readonly scope: string | undefined } & BearerChallenge)
  | { readonly scheme: 'basic' }

/** The challenge of an answer that can be met: a token's before a password's. */
export function readChallenge(answer: Answer): Challenge | undefined {
  const challenges = parseChallenges(answer.header('www-authenticate') ?? '')
  for (const { scheme, parameters } of challenges) {
    const realm = parameters.get('realm') ?? ''
    if (scheme !== 'bearer' || !URL.canParse(realm)) continue
    const url = new URL(realm)
    if (url.protocol !== 'http:' && url.protocol !== 'https:') continue
    url.hash = ''
    return { scheme: 'bearer', realm: url, service: parameters.get('service'), scope: parameters.get('scope') }
  }
  return challenges.some(({ scheme }) => scheme === 'basic') ? { scheme: 'basic' } : undefined
}

/** Whether two challenges ask for the same, whatever the repository. */
export function isSameChallenge(a: Challenge, b: Challenge): boolean {
  if (a.scheme === 'basic' || b.scheme === 'basic') return a.scheme === b.scheme
  return a.realm.href === b.realm.href && a.service === b.service
}
