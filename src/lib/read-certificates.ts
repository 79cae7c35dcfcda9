import { X509Certificate } from 'node:crypto'

/** The certificates of a PEM text, in its order and without what stands around them; undefined when one cannot be read. */
export function readCertificates(pem: string): X509Certificate[] | undefined {
  try {
    const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
    return blocks.map((block) => new X509Certificate(block))
  } catch {
    // OpenSSL says it in many ways; each means the same.
    return undefined
  }
}
