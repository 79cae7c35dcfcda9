import { writeFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { join } from 'node:path'
import { run } from './run.ts'

/** PEM files. */
export interface MadeCertificate {
  /** The file of the certificate, followed by the CA that signed it. */
  cert: string
  key: string
}

/** Creates a certificate for these host names and addresses in the folder, signed by a new CA. */
export async function makeCertificate(folder: string, names: readonly string[]): Promise<MadeCertificate> {
  const openssl = (...args: string[]) => run('openssl', args, { cwd: folder })
  const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  const days = ['-days', '2']
  await openssl(
    'req',
    '-x509',
    ...newKey,
    ...days,
    '-keyout',
    'ca.key',
    '-out',
    'ca.crt',
    '-subj',
    '/CN=CA of the test',
  )
  await openssl('req', ...newKey, '-keyout', 'tls.key', '-out', 'tls.csr', '-subj', '/CN=mirror')
  const alternatives = names.map((name) => (isIP(name) === 0 ? `DNS:${name}` : `IP:${name}`))
  await writeFile(join(folder, 'tls.ext'), `subjectAltName = ${alternatives.join(',')}\n`)
  const ca = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial']
  const cert = await openssl('x509', '-req', '-in', 'tls.csr', ...ca, ...days, '-extfile', 'tls.ext')
  await writeFile(join(folder, 'tls.crt'), cert + (await openssl('x509', '-in', 'ca.crt')))
  return { cert: join(folder, 'tls.crt'), key: join(folder, 'tls.key') }
}
