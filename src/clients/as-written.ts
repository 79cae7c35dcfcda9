import { createHash } from 'node:crypto'
import type { ConfiguredFile } from './configured.ts'

/** Whether a file is as we left it: as it was written last, or as a change that was cut short has left it. */
export function isAsWritten({ written, also = [] }: ConfiguredFile, bytes: Uint8Array | undefined): boolean {
  const now = bytes && sha256(bytes)
  return now === written || (now !== undefined && also.includes(now))
}

/** In hex. */
export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}
