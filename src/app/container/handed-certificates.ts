import { readFile } from 'node:fs/promises'
import * as tls from 'node:tls'
import { MirrorError, errnoOf, exitCode } from '../../lib/errors.ts'
import { fileFailureReason } from '../../lib/system-errors.ts'

/**
 * PEM text of the authorities that Node trusts on this machine beyond its own: those of NODE_EXTRA_CA_CERTS, and of the system
 * where Node is told to use them. A container has neither. Throws a MirrorError (exit 2) for a file that cannot be read.
 */
export async function handedCertificates(
  env: Readonly<Record<string, string | undefined>>,
): Promise<string | undefined> {
  const file = env['NODE_EXTRA_CA_CERTS']
  const own = file ? [await read(file)] : []
  const all = [...own, ...(usesSystemStore(env) ? systemCertificates() : [])].filter((text) => text.trim() !== '')
  return all.length === 0 ? undefined : all.map((text) => `${text.trim()}\n`).join('')
}

/** https://nodejs.org/api/cli.html#node_use_system_ca1 */
function usesSystemStore(env: Readonly<Record<string, string | undefined>>): boolean {
  return env['NODE_USE_SYSTEM_CA'] === '1' || /--use-(system|openssl)-ca\b/.test(env['NODE_OPTIONS'] ?? '')
}

/** Newer Node only; older Node knows no NODE_USE_SYSTEM_CA either. In an order that does not change. */
function systemCertificates(): string[] {
  if (!('getCACertificates' in tls) || typeof tls.getCACertificates !== 'function') return []
  return [...new Set(tls.getCACertificates('system') as string[])].toSorted()
}

async function read(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (cause) {
    if (errnoOf(cause) === undefined) throw cause
    throw new MirrorError(`The file ${path} of NODE_EXTRA_CA_CERTS cannot be read: ${fileFailureReason(cause)}.`, {
      exit: exitCode.usage,
      cause,
    })
  }
}
