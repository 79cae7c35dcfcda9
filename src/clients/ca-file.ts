import { MirrorError, exitCode } from '../lib/errors.ts'
import type { FileChange, MirrorForClient } from './client-config.ts'
import type { FilesNow } from './files-now.ts'
import { isLoopback } from './is-loopback.ts'
import { isWrittenByMirror, ownFileHeader } from './written-by-mirror.ts'

/**
 * The name of our copy of the mirror's CA. In a folder that a client looks into for the certificates of one host every .crt
 * counts, so that the user's own stay in use beside it.
 */
export const caFileName = 'mirror-ca.crt'

/**
 * Puts the CA there, or takes away one of ours that is no longer needed. Throws a MirrorError (usage) for a file of that name
 * that is not ours.
 */
export function caChange(path: string, ca: string | undefined, files: FilesNow): FileChange[] {
  const current = files.text(path)
  const isOurs = current !== undefined && isWrittenByMirror(current)
  if (ca === undefined) return isOurs ? files.change(path, undefined) : []
  if (current === undefined || isOurs) return files.change(path, ownFileHeader + ca)
  throw new MirrorError(`${path} is there already and was not written by mirror, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`give ${path} another name, and try again`],
  })
}

/** Whether the path is that of such a copy. */
export function isCaFile(path: string): boolean {
  return /[^\\/]*$/.exec(path)?.[0] === caFileName
}

/**
 * The hosts, with their ports, for which a client that looks for certificates by host needs the CA. Of a registry on loopback
 * it asks for none.
 */
export function hostsToTrust({ cache, registry }: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  const others = registry === undefined || isLoopback(registry) ? [] : [new URL(registry).host]
  return [...new Set([new URL(cache).host, ...others])]
}
