import { X509Certificate } from 'node:crypto'
import * as tls from 'node:tls'
import { exitCode, MirrorError } from '../lib/errors.ts'

/**
 * The certificates to trust with an own CA: it and everything that is trusted without it, for a corporate registry redirects to
 * public storage. Throws a MirrorError when the text holds no certificate or a broken one.
 */
export function trustedCertificates(pem: string, host: string): string[] {
  const own = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  if (own.length === 0 || !own.every(isCertificate)) {
    throw new MirrorError(`The CA for ${host} is not a PEM certificate.`, {
      exit: exitCode.usage,
      hints: [`Check the file that upstreams."${host}".ca names`],
    })
  }
  return [...machineCertificates(), ...own]
}

function machineCertificates(): readonly string[] {
  // Newer Node only; it knows NODE_EXTRA_CA_CERTS and the system's store as well.
  if ('getCACertificates' in tls && typeof tls.getCACertificates === 'function') {
    return tls.getCACertificates('default') as string[]
  }
  return tls.rootCertificates
}

function isCertificate(pem: string): boolean {
  try {
    return new X509Certificate(pem).raw.length > 0
  } catch {
    return false
  }
}
