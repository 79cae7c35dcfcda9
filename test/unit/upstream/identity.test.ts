import { describe, expect, test } from 'vitest'
import { createIdentify, type Credential, getFingerprint } from '../../../src/upstream/identity.ts'
import { webToken } from '../../support/web-token.ts'

const identify = createIdentify(Buffer.from('a key'))
const password = (username: string, secret: string): Credential => ({ kind: 'password', username, password: secret })
const token = (text: string): Credential => ({ kind: 'identity-token', token: text })

test('a request without a credential is anonymous', () => {
  expect(identify(undefined, 'ghcr.io')).toBe('anonymous')
})

test('an identity is the same in another process with the key, and contains no part of the credential', () => {
  const identity = identify(password('ann', 'hunter2'), 'ghcr.io')
  expect(identity).toMatch(/^credential-[0-9a-f]{32}$/)
  expect(createIdentify(Buffer.from('a key'))(password('ann', 'hunter2'), 'ghcr.io')).toBe(identity)
  expect(createIdentify(Buffer.from('another'))(password('ann', 'hunter2'), 'ghcr.io')).not.toBe(identity)
})

test('another secret, name, kind or registry makes another identity', () => {
  const all = [
    identify(password('AWS', 'one'), 'one.example'),
    identify(password('AWS', 'two'), 'one.example'),
    identify(password('AW', 'Sone'), 'one.example'),
    identify(password('', 'one'), 'one.example'),
    identify(token('one'), 'one.example'),
    identify({ kind: 'registry-token', token: 'one' }, 'one.example'),
    identify(password('AWS', 'one'), 'two.example'),
  ]
  expect(new Set(all).size).toBe(all.length)
})

test('one credential object may serve several registries', () => {
  const credential = password('ann', 'hunter2')
  const [first, second] = [identify(credential, 'one.example'), identify(credential, 'two.example')]
  expect(first).not.toBe(second)
  expect(identify(credential, 'one.example')).toBe(first)
})

describe('a JSON Web Token', () => {
  const claims = { iss: 'Azure Container Registry', sub: 'ann', aud: 'a.azurecr.io' }
  const of = (changed: object, header?: object) => identify(token(webToken({ ...claims, ...changed }, header)), 'a')

  test('gives one identity for an account, whatever the time and the number of the token', () => {
    const first = of({ iat: 1, nbf: 1, exp: 2, jti: 'x' })
    expect(first).toMatch(/^account-[0-9a-f]{32}$/)
    expect(of({ jti: 'y', exp: 4, nbf: 3, iat: 3 })).toBe(first)
    expect(identify(token(webToken({ aud: 'a.azurecr.io', sub: 'ann', iss: claims.iss })), 'a')).toBe(of({}))
  })

  test.each([{ sub: 'bob' }, { iss: 'other' }, { aud: 'b' }, { access: [] }, { permissions: { actions: ['read'] } }])(
    'names another account with %j',
    (changed) => {
      expect(of(changed)).not.toBe(of({}))
    },
  )

  test.each([
    ['has no subject', webToken({ iss: 'a' })],
    ['has an empty subject', webToken({ iss: 'a', sub: '' })],
    ['has no issuer', webToken({ sub: 'a' })],
    ['has no algorithm', webToken(claims, {})],
    ['is no JSON', 'YQ.Yg.Yw'],
    ['has four parts', `${webToken(claims)}.YQ`],
    ['has no signature', webToken(claims).replace(/[^.]+$/, '')],
  ])('that %s is treated as any other secret', (_what, text) => {
    expect(identify(token(text), 'a')).toMatch(/^credential-/)
  })

  test('has its own fingerprint for what was obtained with it', () => {
    const [first, second] = [token(webToken({ ...claims, exp: 1 })), token(webToken({ ...claims, exp: 2 }))]
    expect(identify(first, 'a')).toBe(identify(second, 'a'))
    expect(getFingerprint(first)).not.toBe(getFingerprint(second))
    expect(getFingerprint(first)).toBe(getFingerprint({ ...first }))
  })
})

test('two passwords of one user have different fingerprints for what was obtained with them', () => {
  expect(getFingerprint(password('AWS', 'a'))).not.toBe(getFingerprint(password('AWS', 'b')))
  expect(getFingerprint(undefined)).toBe('anonymous')
})
