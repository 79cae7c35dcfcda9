import type { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { parseCertificates } from '../lib/fs.ts'
import { fileFailureReason } from '../lib/system-errors.ts'
import type { Config } from './config.ts'

/** The facts that clients need about the mirror's certificate. */
export interface MirrorCertificate {
  /** The CA that clients must trust; undefined when the systems' stores trust it already. */
  readonly ca: { readonly pem: string; readonly file: string } | undefined
  /** Checks whether the certificate is valid for this host name or address; true when the certificate is not known. */
  isFor(hostname: string): boolean
}

/**
 * Finds the CA of the mirror's certificate: `caFile`, `tls.ca` from the configuration, or the last certificate of `tls.cert` if it is
 * self-signed. Throws a MirrorError (usage) for a file that cannot be read or has no certificate.
 */
export async function findCertificate(
  tls: Config['tls'],
  caFile: string | undefined,
  read: ReadTextFile = (file) => readFile(file, 'utf8'),
): Promise<MirrorCertificate> {
  const named = caFile ?? tls?.ca
  const chain = tls && (await readCertificateFile(tls.cert, '"tls.cert" in mirror.yaml', read))
  const ca =
    named === undefined
      ? undefined
      : await (caFile
          ? readCertificateFile(named, '--ca', (file) => readFile(file, 'utf8'))
          : readCertificateFile(named, '"tls.ca" in mirror.yaml', read))
  const last = chain?.at(-1)
  return {
    ca:
      named !== undefined && ca
        ? { pem: ca.join(''), file: named }
        : tls && last && isSelfSigned(last)
          ? { pem: last.toString(), file: tls.cert }
          : undefined,
    isFor: (hostname) => chain?.[0] === undefined || isIssuedFor(chain[0], hostname.replace(/^\[|\]$/g, '')),
  }
}

type ReadTextFile = (file: string) => Promise<string>

async function readCertificateFile(file: string, what: string, read: ReadTextFile): Promise<X509Certificate[]> {
  const certificates = parseCertificates(await readText(file, what, read))
  if (certificates && certificates.length > 0) return certificates
  throw new MirrorError(`${file} has no PEM certificate.`, { exit: exitCode.usage, hints: [`Check ${what}`] })
}

async function readText(file: string, what: string, read: ReadTextFile): Promise<string> {
  try {
    return await read(file)
  } catch (cause) {
    if (errnoOf(cause) === undefined) throw cause
    throw new MirrorError(`The certificate ${file} cannot be read: ${fileFailureReason(cause)}.`, {
      exit: exitCode.usage,
      hints: [`Check ${what}`],
      cause,
    })
  }
}

/** Checks whether a certificate is self-signed. `checkIssued` would reject a server's certificate, which must not sign others. */
function isSelfSigned(certificate: X509Certificate): boolean {
  return certificate.subject === certificate.issuer && certificate.verify(certificate.publicKey)
}

/** Checks the host as Go programs do, which ignore the subject. */
function isIssuedFor(certificate: X509Certificate, host: string): boolean {
  const found = isIP(host) === 0 ? certificate.checkHost(host, { subject: 'never' }) : certificate.checkIP(host)
  return found !== undefined
}
