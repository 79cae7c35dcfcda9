import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { findCertificate } from '../../../src/config/load.ts'
import { testCertificate } from '../../support/upstream/certificate.ts'
import { authority, leaf } from '../../support/clients/certificates.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-certificate-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function file(name: string, ...texts: string[]): Promise<string> {
  await writeFile(join(folder, name), texts.join('\n'))
  return join(folder, name)
}

const withoutSpace = (text: string | undefined) => text?.replaceAll(/\s/g, '')

/** Returns the CA that is found for a `tls.cert` of these texts. */
async function caOf(...texts: string[]): Promise<string | undefined> {
  const cert = await file('tls.crt', ...texts)
  return withoutSpace((await findCertificate({ cert, key: '/no/matter', ca: undefined }, undefined)).ca?.pem)
}

describe("the CA of the mirror's certificate", () => {
  test('is the certificate itself when it is self-signed', async () => {
    expect(await caOf(testCertificate.cert)).toBe(withoutSpace(testCertificate.cert))
  })

  test('is the last certificate of its file when that is self-signed, without the other content', async () => {
    expect(await caOf('# a remark', leaf, testCertificate.key, authority, '')).toBe(withoutSpace(authority))
  })

  test('is undefined when no certificate is self-signed', async () => {
    expect(await caOf(leaf)).toBeUndefined()
    expect(await caOf(authority, leaf)).toBeUndefined()
    expect((await findCertificate(undefined, undefined)).ca).toBeUndefined()
  })

  test('is the given file, else the file that the configuration names', async () => {
    const cert = await file('tls.crt', testCertificate.cert)
    const ca = await file('ca.crt', authority, leaf)
    const named = await findCertificate({ cert, key: '', ca }, undefined)
    expect(withoutSpace(named.ca?.pem)).toBe(withoutSpace(authority + leaf))
    expect(named.ca?.file).toBe(ca)
    const given = await findCertificate({ cert, key: '', ca }, cert)
    expect(given.ca?.file).toBe(cert)
  })

  test.each([
    ['no certificate', 'just text'],
    ['a broken one', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'],
    ['a key', testCertificate.key],
  ])('is an error when its file has %s', async (_, text) => {
    const cert = await file('tls.crt', testCertificate.cert)
    const ca = await file('ca.crt', text)
    await expect(findCertificate({ cert, key: '', ca }, undefined)).rejects.toMatchObject({
      exit: 2,
      message: expect.stringContaining(ca) as string,
      hints: [expect.stringContaining('tls.ca')],
    })
  })

  test('is an error when the file does not exist', async () => {
    const nowhere = join(folder, 'nowhere')
    await expect(findCertificate(undefined, nowhere)).rejects.toMatchObject({ exit: 2, hints: ['Check --ca'] })
  })
})

test.each([
  ['127.0.0.1', true],
  ['localhost', true],
  ['[::1]', false],
  ['10.0.0.1', false],
  ['mirror', false],
])('the certificate is valid for its own names only: %s', async (hostname, isFor) => {
  const cert = await file('tls.crt', testCertificate.cert)
  expect((await findCertificate({ cert, key: '', ca: undefined }, undefined)).isFor(hostname)).toBe(isFor)
})
