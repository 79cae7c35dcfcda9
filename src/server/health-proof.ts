import { createHmac } from 'node:crypto'

/** What only this instance of a mirror can answer to a challenge: whoever has its port now cannot. */
export function healthProof(instance: string, challenge: string): string {
  return createHmac('sha256', instance).update(challenge).digest('hex')
}
