import { readFileSync } from 'node:fs'
import { createSecureContext } from 'node:tls'
import type { Config } from '../config/config.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { describeFileFailure, fileFailureReason } from '../lib/system-errors.ts'
import { checkPasswordFile } from '../server/basic-auth.ts'
import { trustedCertificates } from '../upstream/transport.ts'
import { readProxies } from '../upstream/proxy.ts'

/**
 * Reads what the configuration names and the server reads when it starts, before a running mirror is stopped for it. Throws a
 * MirrorError (exit 2) for the first file or proxy variable that cannot be used.
 */
export async function checkNamedFiles(
  { tls, upstreams, registry }: Config,
  env: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  try {
    readTls(tls)
    readAuthorities(upstreams)
    readProxies(env)
    if (registry.enabled && registry.auth) await checkPasswordFile(registry.auth.htpasswd)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const { exit, hints } = error
    throw new MirrorError(`${error.message.replace(/\.$/, '')}, so nothing was done.`, { exit, hints, cause: error })
  }
}

/** Throws a MirrorError (exit 2) for files that are no certificate and its key. */
export function readTls(tls: Config['tls']): { cert: string; key: string } | undefined {
  if (!tls) return undefined
  try {
    const pair = { cert: readFileSync(tls.cert, 'utf8'), key: readFileSync(tls.key, 'utf8') }
    createSecureContext(pair)
    return pair
  } catch (cause) {
    const { path } = describeFileFailure(cause) ?? {}
    const why = path === undefined ? fileFailureReason(cause) : `${path}: ${fileFailureReason(cause)}`
    throw new MirrorError(`The certificate and key of "tls" cannot be used: ${why}.`, {
      exit: exitCode.usage,
      hints: ['"tls" in mirror.yaml needs two PEM files that belong together: {cert: ./tls.crt, key: ./tls.key}'],
      cause,
    })
  }
}

/** PEM text of the upstreams' own authorities, by host. Throws a MirrorError for a file that cannot be used. */
export function readAuthorities(upstreams: Config['upstreams']): Map<string, string | undefined> {
  return new Map(Object.entries(upstreams).map(([host, { ca }]) => [host, ca && readAuthority(host, ca)]))
}

function readAuthority(host: string, path: string): string {
  try {
    const pem = readFileSync(path, 'utf8')
    trustedCertificates(pem, host)
    return pem
  } catch (cause) {
    if (errnoOf(cause) === undefined) throw cause
    throw new MirrorError(
      `The certificate file ${path} (upstreams.${host}.ca) cannot be read: ${fileFailureReason(cause)}.`,
      {
        exit: exitCode.usage,
        cause,
      },
    )
  }
}
