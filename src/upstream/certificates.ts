import * as tls from 'node:tls'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { readCertificates } from '../lib/fs.ts'

/**
 * The certificates to trust with an own CA: it and everything that is trusted without it, for a corporate registry redirects to
 * public storage. Throws a MirrorError when the text holds no certificate or a broken one.
 */
export function trustedCertificates(pem: string, host: string): string[] {
  const own = readCertificates(pem)
  if (own === undefined || own.length === 0) {
    throw new MirrorError(`The CA for ${host} is not a PEM certificate.`, {
      exit: exitCode.usage,
      hints: [`Check the file that upstreams."${host}".ca names`],
    })
  }
  return [...machineCertificates(), ...own.map(String)]
}

function machineCertificates(): readonly string[] {
  // Newer Node only; it knows NODE_EXTRA_CA_CERTS and the system's store as well.
  if ('getCACertificates' in tls && typeof tls.getCACertificates === 'function') {
    return tls.getCACertificates('default') as string[]
  }
  return tls.rootCertificates
}
