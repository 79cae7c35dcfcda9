import type { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { readCertificates } from '../lib/fs.ts'
import { fileFailureReason } from '../lib/system-errors.ts'
import type { Config } from './config.ts'

/** What clients have to know of the certificate that the mirror shows. */
export interface MirrorCertificate {
  /** What they have to trust; undefined where that is in every system's store. */
  readonly ca: { readonly pem: string; readonly file: string } | undefined
  /** Whether it is for this host name or address; true where nobody knows. */
  isFor(hostname: string): boolean
}

/**
 * The CA of the mirror's certificate: the one that was named, by `caFile` or in the configuration, or the certificate at the
 * end of the mirror's own file if it has signed itself. Throws a MirrorError (usage) for a file that holds none.
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
  const certificates = readCertificates(await readText(file, what, read))
  if (certificates && certificates.length > 0) return certificates
  throw new MirrorError(`${file} holds no PEM certificate.`, { exit: exitCode.usage, hints: [`Check ${what}`] })
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

/** `checkIssued` would say no to a server's own certificate, which may sign nothing else. */
function isSelfSigned(certificate: X509Certificate): boolean {
  return certificate.subject === certificate.issuer && certificate.verify(certificate.publicKey)
}

/** As Go's programs see it: the subject is not looked at. */
function isIssuedFor(certificate: X509Certificate, host: string): boolean {
  const found = isIP(host) === 0 ? certificate.checkHost(host, { subject: 'never' }) : certificate.checkIP(host)
  return found !== undefined
}
