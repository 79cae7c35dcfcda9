import { describe, expect, test } from 'vitest'
import { OciError } from '../../../src/oci/errors.ts'
import { parseRoute } from '../../../src/oci/route.ts'

const digest = `sha256:${'a'.repeat(64)}`

function repositoryOf(target: string) {
  const route = parseRoute(target, 'proxy')
  if (!('name' in route)) throw new Error('no repository in this route')
  return { registry: route.registry, name: route.name, byNamespace: route.byNamespace }
}

function refusal(target: string, addressing: 'proxy' | 'plain' = 'proxy'): number {
  try {
    parseRoute(target, addressing)
  } catch (error) {
    if (error instanceof OciError) return error.status
    throw error
  }
  throw new Error(`${target} was taken`)
}

describe('the five forms of a path that name an upstream', () => {
  test.each([
    ['/v2/library/alpine/manifests/3.20?ns=docker.io', 'docker.io', 'library/alpine', true],
    ['/v2/ghcr.io/org/app/manifests/1', 'ghcr.io', 'org/app', false],
    ['/v2/localhost:5000/app/manifests/1', 'localhost:5000', 'app', false],
    ['/v2/localhost/app/manifests/1', 'localhost', 'app', false],
    // Spells a port as podman does, so that it is valid within an image reference.
    ['/v2/registry.example_8443/org/app/manifests/1', 'registry.example:8443', 'org/app', false],
    ['/v2/upstream/registry.example_8443/app/manifests/1', 'registry.example:8443', 'app', false],
    ['/v2/org_8443/app/manifests/1', undefined, 'org_8443/app', false],
    ['/v2/upstream/ghcr.io/org/app/manifests/1', 'ghcr.io', 'org/app', false],
    ['/ghcr.io/v2/org/app/manifests/1', 'ghcr.io', 'org/app', false],
    ['/v2/library/alpine/manifests/3.20', undefined, 'library/alpine', false],
    ['/v2/alpine/manifests/3.20', undefined, 'alpine', false],
  ])('are parsed: %s', (target, registry, name, byNamespace) => {
    expect(repositoryOf(target)).toEqual({ registry, name, byNamespace })
  })

  test('ns takes precedence: an equal first segment is removed, any other belongs to the name', () => {
    expect(repositoryOf('/v2/quay.io/org/app/manifests/1?ns=quay.io').name).toBe('org/app')
    expect(repositoryOf('/v2/google.com/cloudsdktool/sdk/manifests/1?ns=gcr.io').name).toBe(
      'google.com/cloudsdktool/sdk',
    )
    expect(repositoryOf('/v2/registry.example%3A8443/org/app/manifests/1?ns=registry.example%3A8443')).toEqual({
      registry: 'registry.example:8443',
      name: 'org/app',
      byNamespace: true,
    })
  })

  test('other names of Docker Hub become docker.io', () => {
    expect(repositoryOf('/v2/library/alpine/manifests/1?ns=registry-1.docker.io').registry).toBe('docker.io')
    expect(repositoryOf('/v2/index.docker.io/library/alpine/manifests/1').registry).toBe('docker.io')
  })

  test('the push registry uses names unchanged', () => {
    const route = parseRoute('/v2/ghcr.io/org/app/manifests/1', 'plain')
    expect(route).toMatchObject({ kind: 'manifest', registry: undefined, name: 'ghcr.io/org/app' })
  })
})

describe('a parsed route', () => {
  test.each([
    ['/v2/', { kind: 'base' }],
    ['/v2', { kind: 'base' }],
    ['/v2/_catalog?n=5&last=b', { kind: 'catalog', page: { n: '5', last: 'b' } }],
    [`/v2/a/manifests/${digest}`, { kind: 'manifest', reference: { kind: 'digest', digest } }],
    [`/v2/a/blobs/${digest}`, { kind: 'blob', digest }],
    [`/v2/a/blobs/${digest.replace(':', '%3A')}`, { kind: 'blob', digest }],
    ['/v2/a/b/tags/list?n=2', { kind: 'tags', name: 'a/b', page: { n: '2', last: undefined } }],
    [`/v2/a/referrers/${digest}?artifactType=x/y`, { kind: 'referrers', artifactType: 'x/y' }],
    ['/v2/a/blobs/uploads/', { kind: 'uploads', name: 'a' }],
    ['/v2/a/blobs/uploads/some-id', { kind: 'upload', id: 'some-id' }],
    [
      '/v2/manifests/manifests/manifests',
      { kind: 'manifest', name: 'manifests', reference: { kind: 'tag', tag: 'manifests' } },
    ],
    ['/v2/tags/list/tags/list', { kind: 'tags', name: 'tags/list' }],
  ])('has the kind and the parts of %s', (target, expected) => {
    expect(parseRoute(target, 'proxy')).toMatchObject(expected)
  })
})

describe('an invalid request target', () => {
  test.each([
    ['/v2/../etc/passwd', 404],
    ['/v2/%2e%2e/manifests/latest', 400],
    ['/v2/a%2f..%2fb/manifests/latest', 400],
    ['/v2/a/manifests/..', 404],
    ['/v2/a/manifests/%00', 404],
    ['/v2/a/manifests/%zz', 400],
    ['/v2/A/manifests/latest', 400],
    ['/v2/a//b/manifests/latest', 400],
    [`/v2/${'a'.repeat(256)}/manifests/latest`, 400],
    ['/v2/a/blobs/md5:d41d8cd98f00b204e9800998ecf8427e', 400],
    [`/v2/a/blobs/sha256:${'A'.repeat(64)}`, 400],
    ['/v2/a/blobs/sha256:baddigeststring', 400],
    [`/v2/a/manifests/${'t'.repeat(129)}`, 404],
    ['/v2/a/manifests/.INVALID_MANIFEST_NAME', 404],
    ['/v1/_ping', 404],
    ['/', 404],
    ['/favicon.ico', 404],
    ['/v2/a/manifests/latest?ns=docker.io&ns=quay.io', 400],
    ['/v2/a/manifests/latest?ns=a@b', 400],
    ['/v2/a/manifests/latest?ns=docker.io/../x', 400],
    [`/v2/a/manifests/latest?ns=${'a'.repeat(300)}`, 400],
  ])('is an error: %s', (target, status) => {
    expect(refusal(target)).toBe(status)
  })

  test('an invalid tag is a 400 for a PUT', () => {
    expect(() => parseRoute('/v2/a/manifests/.INVALID_MANIFEST_NAME', 'plain', 'PUT')).toThrow(
      expect.objectContaining({ code: 'MANIFEST_INVALID', status: 400 }),
    )
  })
})
