import { describe, expect, test } from 'vitest'
import {
  getDigestAlgorithm,
  getDigestHex,
  computeDigest,
  parseDigest,
  toCanonicalRegistry,
  isRepositoryName,
  looksLikeRegistry,
  toRegistryUrl,
  parseRegistryHost,
} from '../../../src/oci/reference.ts'
import { parseChallenges } from '../../../src/oci/headers.ts'
import { parseRange } from '../../../src/server/blobs.ts'

describe('digests', () => {
  test('of sha256 and sha512 are parsed, any other text is rejected', () => {
    expect(parseDigest(`sha256:${'0'.repeat(64)}`)).toBeDefined()
    expect(parseDigest(`sha512:${'f'.repeat(128)}`)).toBeDefined()
    for (const bad of [
      '',
      'sha256:',
      `sha256:${'0'.repeat(63)}`,
      `sha256:${'G'.repeat(64)}`,
      `__proto__:${'0'.repeat(64)}`,
      `sha256:${'0'.repeat(64)}/x`,
    ]) {
      expect(parseDigest(bad)).toBeUndefined()
    }
  })

  test('are computed from bytes', () => {
    const digest = computeDigest(Buffer.from(''))
    expect(digest).toBe('sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855')
    expect(getDigestAlgorithm(digest)).toBe('sha256')
    expect(getDigestHex(computeDigest(Buffer.from(''), 'sha512'))).toHaveLength(128)
  })
})

describe('names', () => {
  test('follow the grammar of the distribution specification', () => {
    for (const good of ['a', 'library/alpine', 'a__b', 'a.b-c/d_e', 'a---b', '0/1'])
      expect(isRepositoryName(good)).toBe(true)
    for (const bad of ['', '/', 'a/', '/a', 'a//b', 'A', 'a___b', '-a', 'a.', '..', 'a/../b', 'ä'])
      expect(isRepositoryName(bad)).toBe(false)
  })

  test('registry hosts have no scheme, user, path or odd port', () => {
    expect(parseRegistryHost('GHCR.io')).toBe('ghcr.io')
    expect(parseRegistryHost('localhost:5000')).toBe('localhost:5000')
    expect(parseRegistryHost('[::1]:5000')).toBe('[::1]:5000')
    for (const bad of ['', 'a@b', 'http://a', 'a/b', 'a:0', 'a:70000', 'a..b', '-a.io', 'a b', 'a?b', 'a#b'])
      expect(parseRegistryHost(bad)).toBeUndefined()
  })

  test('all names of Docker Hub become docker.io, and its URL has another host', () => {
    for (const name of ['docker.io', 'index.docker.io', 'registry-1.docker.io'])
      expect(toCanonicalRegistry(name)).toBe('docker.io')
    expect(toCanonicalRegistry('registry.corp.example:5000')).toBe('registry.corp.example:5000')
    expect(toRegistryUrl('docker.io')).toBe('https://registry-1.docker.io')
    expect(toRegistryUrl('registry.corp.example:5000')).toBe('https://registry.corp.example:5000')
  })

  test('a first segment with a dot or a port, or localhost, is a registry', () => {
    for (const yes of ['ghcr.io', 'host:5000', 'localhost']) expect(looksLikeRegistry(yes)).toBe(true)
    for (const no of ['library', 'upstream', 'localhosts']) expect(looksLikeRegistry(no)).toBe(false)
  })
})

describe('ranges (RFC 9110 §14.1.2)', () => {
  test.each([
    ['bytes=0-3', { start: 0, end: 3 }],
    ['bytes=4-', { start: 4, end: 9 }],
    ['bytes=-3', { start: 7, end: 9 }],
    ['bytes=-30', { start: 0, end: 9 }],
    ['bytes=5-100', { start: 5, end: 9 }],
    ['bytes=10-', 'unsatisfiable'],
    ['bytes=5-2', 'unsatisfiable'],
    ['bytes=-0', 'unsatisfiable'],
    ['bytes=0-1,3-4', undefined],
    ['items=0-1', undefined],
    ['bytes=a-b', undefined],
    ['bytes=-', undefined],
    [undefined, undefined],
  ])('are parsed: %s of 10 bytes', (header, expected) => {
    expect(parseRange(header, 10)).toEqual(expected)
  })
})

describe('challenges (RFC 9110 §11.6.1)', () => {
  test('with several schemes, quoted and bare values, and commas inside quotes are parsed', () => {
    const [bearer, basic] = parseChallenges(
      'Bearer realm="https://a.example/token?x=1,2",service=a.example,scope="repository:a/b:pull,push", Basic realm="a \\"b\\""',
    )
    expect(bearer?.scheme).toBe('bearer')
    expect(Object.fromEntries(bearer!.parameters)).toEqual({
      realm: 'https://a.example/token?x=1,2',
      service: 'a.example',
      scope: 'repository:a/b:pull,push',
    })
    expect(basic?.scheme).toBe('basic')
    expect(basic?.parameters.get('realm')).toBe('a "b"')
  })

  test('are empty for a malformed header', () => {
    expect(parseChallenges('')).toEqual([])
    expect(parseChallenges('  ,, ')).toEqual([])
  })
})
