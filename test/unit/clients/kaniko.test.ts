import { describe, expect, test } from 'vitest'
import { parse } from 'yaml'
import type { MirrorForClient } from '../../../src/clients/types.ts'
import { printKaniko } from '../../../src/clients/kaniko.ts'

const registries = ['docker.io', 'gcr.io', 'registry.k8s.io', 'registry.corp.example:8443']

function mirror(cache: string, more: Partial<MirrorForClient> = {}): MirrorForClient {
  return { cache, registry: undefined, registries, defaultUpstream: 'docker.io', fallback: true, ...more }
}

/** Returns the flags of the output, which are its first lines. */
function flagsOf(output: string | undefined): string[] {
  return (output ?? '').split('\n\n')[0]!.split('\n')
}

/** Splits a name as go-containerregistry pkg/name does: a registry has a dot or a colon, or is localhost. */
function registryAndRepository(name: string): [registry: string, repository: string] {
  const [first = '', ...rest] = name.split('/')
  if (rest.length > 0 && (/[.:]/.test(first) || first === 'localhost')) return [first, rest.join('/')]
  return ['index.docker.io', rest.length === 0 ? `library/${name}` : name]
}

/**
 * Returns the request of kaniko for an image, by its rules: it finds the map by the registry's name, cuts a target at its first
 * slash, and parses the joined name like any other name.
 */
function resolveRequest(
  flags: readonly string[],
  image: string,
): { registry: string; repository: string; isPlain: boolean } {
  const [registry, repository] = registryAndRepository(image)
  const maps = flags.flatMap((flag) => {
    if (flag.startsWith('--registry-map=')) return flag.slice('--registry-map='.length).split(';')
    return flag.startsWith('--registry-mirror=') ? [`index.docker.io=${flag.slice('--registry-mirror='.length)}`] : []
  })
  const target = maps.find((map) => map.startsWith(`${registry}=`))?.slice(registry.length + 1)
  if (target === undefined) return { registry, repository, isPlain: false }
  const [host = '', ...path] = target.split('/')
  const [again, rest] = registryAndRepository([...path, repository].join('/'))
  const insecure = flags.some((flag) => flag === `--insecure-registry=${host}`)
  const isLocal = /^(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?$/.test(host) || /\.localhost(?::\d+)?$/.test(host)
  const isPrivate = /^(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.[\d.]+(?::\d+)?$/.test(host)
  return {
    registry: again === 'index.docker.io' ? host : again,
    repository: rest,
    isPlain: insecure || isLocal || isPrivate,
  }
}

describe('the flags for kaniko', () => {
  test.each(['http://127.0.0.1:5055', 'http://172.18.0.1:5055', 'http://mirror:5055', 'http://mirror.local:5055'])(
    'map every registry to %s without TLS',
    (cache) => {
      const flags = flagsOf(printKaniko(mirror(cache), undefined).output)
      const registry = new URL(cache).host
      const at = (repository: string) => ({ registry, repository, isPlain: true })
      expect(resolveRequest(flags, 'alpine')).toEqual(at('upstream/docker.io/library/alpine'))
      expect(resolveRequest(flags, 'gcr.io/distroless/static')).toEqual(at('upstream/gcr.io/distroless/static'))
      expect(resolveRequest(flags, 'registry.corp.example:8443/a/b')).toEqual(
        at('upstream/registry.corp.example:8443/a/b'),
      )
      expect(resolveRequest(flags, 'other.example/a')).toMatchObject({ registry: 'other.example' })
    },
  )

  test.each([
    ['http://127.0.0.1:5055', false],
    ['http://localhost:5055', false],
    ['http://[::1]:5055', false],
    ['http://10.0.0.7:5055', false],
    ['http://172.31.255.1:5055', false],
    ['http://172.32.0.1:5055', true],
    ['http://192.168.1.1:5055', false],
    ['http://127.0.0.2:5055', true],
    ['http://mirror:5055', true],
    ['https://mirror:5055', false],
  ])('list %s as insecure: %s', (cache, isNamed) => {
    const flags = flagsOf(printKaniko(mirror(cache), undefined).output)
    expect(flags.includes(`--insecure-registry=${new URL(cache).host}`)).toBe(isNamed)
  })

  test('disable the fallback to the origin without fallback', () => {
    const flags = flagsOf(printKaniko(mirror('http://127.0.0.1:5055', { fallback: false }), undefined).output)
    expect(flags.at(-1)).toBe('--skip-default-registry-fallback')
  })

  test('use --registry-mirror for an older kaniko', () => {
    const { output, notes } = printKaniko(mirror('http://mirror:5055'), 'v1.19.2')
    expect(flagsOf(output)).toEqual([
      '--registry-mirror=mirror:5055/upstream/docker.io',
      '--insecure-registry=mirror:5055',
    ])
    expect(output).toContain('KANIKO_REGISTRY_MIRROR=mirror:5055/upstream/docker.io\n')
    expect(notes).toEqual(['kaniko before 1.22 mirrors Docker Hub only.'])
  })

  test('are also in the Pod, which pushes to the registry', () => {
    const { output } = printKaniko(mirror('http://mirror:5055', { registry: 'http://mirror:5001' }), '1.28.3')
    const pod = parse(output!.slice(output!.indexOf('apiVersion:'))) as {
      spec: { containers: { args: string[] }[] }
    }
    const { args } = pod.spec.containers[0]!
    expect(args).toEqual(expect.arrayContaining(flagsOf(output)))
    expect(args).toEqual(
      expect.arrayContaining(['--destination=mirror:5001/app:dev', '--insecure-registry=mirror:5001']),
    )
  })
})
