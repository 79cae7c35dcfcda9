import { describe, expect, test } from 'vitest'
import {
  findSimilarNames,
  createNotFoundError,
  createAddressCheck,
  parseUserNames,
  removeByName,
} from '../../../src/admin/names.ts'

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`
const other = `sha256:${'0123456789ab'.repeat(5)}ffff`
const images = [
  { name: 'docker.io/library/nginx:1.27', digest },
  { name: 'docker.io/library/nginx:1.26', digest: `sha256:${'a'.repeat(64)}` },
  { name: 'docker.io/owner/app:1', digest: `sha256:${'b'.repeat(64)}` },
  { name: 'ghcr.io/owner/app:1', digest: `sha256:${'c'.repeat(64)}` },
  { name: `quay.io/a/b@${other}`, digest: other },
]
const naming = {
  isOwnAddress: createAddressCheck(['http://127.0.0.1:5055', 'http://172.18.0.1:5055'], ['Mirror.Corp.Example']),
  defaultUpstream: 'docker.io',
  images,
}
const read = (given: string) => parseUserNames([given], naming)[0]!.name

describe('a name of a cached image', () => {
  test.each([
    ['docker.io/library/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['nginx', 'docker.io/library/nginx'],
    ['library/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['docker.io/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['index.docker.io/library/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['owner/app:1', 'docker.io/owner/app:1'],
    ['GHCR.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['docker://ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['docker://nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['127.0.0.1:5055/ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['localhost:5055/ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['[::1]:5055/ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['172.18.0.1:5055/ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['mirror:5055/library/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['mirror.corp.example:5055/nginx:1.27', 'docker.io/library/nginx:1.27'],
    ['127.0.0.1:5055/upstream/ghcr.io/owner/app:1', 'ghcr.io/owner/app:1'],
    ['127.0.0.1:5055/registry.corp.example_5000/a:1', 'registry.corp.example:5000/a:1'],
    ['registry.corp.example:5000/a:1', 'registry.corp.example:5000/a:1'],
    ['localhost:7777/a:1', 'localhost:7777/a:1'],
    [`nginx@${digest}`, `docker.io/library/nginx@${digest}`],
    [`nginx:1.27@${digest}`, `docker.io/library/nginx@${digest}`],
    ['nginx@sha256:0123456789ab…', `docker.io/library/nginx@${digest}`],
    ['quay.io/a/b@sha256:0123456789ab…', `quay.io/a/b@${other}`],
    [digest, digest],
    ['sha256:aaaaaa', `sha256:${'a'.repeat(64)}`],
    ['sha256:dddddd', 'sha256:dddddd'],
    ['Not A Name', 'Not A Name'],
    ['nginx:1.27/', 'docker.io/library/nginx:1.27'],
  ])('%s means %s', (given, expected) => {
    expect(read(given)).toBe(expected)
  })

  test('is refused when several digests begin with it', () => {
    expect(() => read('sha256:0123456789ab')).toThrow('ambiguous')
  })

  test('reports images of the same name in other registries, which stay', async () => {
    const remove = (names: string[]) => Promise.resolve({ images: names, blobs: 1, bytes: 1, unknown: [] })
    const { images: gone, notes } = await removeByName(['owner/app:1', 'ghcr.io/owner/app:1'], naming, remove)
    expect(gone).toEqual(['docker.io/owner/app:1', 'ghcr.io/owner/app:1'])
    expect(notes).toEqual([
      'owner/app:1 means docker.io/owner/app:1; this image of another registry stays: ghcr.io/owner/app:1',
    ])
  })

  test('that matches nothing fails with similar names', async () => {
    const remove = (names: string[]) => Promise.resolve({ images: [], blobs: 0, bytes: 0, unknown: names })
    const { missing, unknown } = await removeByName(['nginx:1.2', 'app:1'], naming, remove)
    expect(unknown).toEqual(['nginx:1.2', 'app:1'])
    expect(findSimilarNames(missing[0]!, images)).toEqual([
      'docker.io/library/nginx:1.27',
      'docker.io/library/nginx:1.26',
    ])
    expect(findSimilarNames(missing[1]!, images)).toEqual(['docker.io/owner/app:1', 'ghcr.io/owner/app:1'])
    expect(findSimilarNames({ given: 'ngnix:1.27', name: 'docker.io/library/ngnix:1.27', others: [] }, images)).toEqual(
      ['docker.io/library/nginx:1.27'],
    )
    expect(
      findSimilarNames({ given: 'redsi:7', name: 'redsi:7', others: [] }, [{ name: 'team/redis:7', digest }]),
    ).toEqual(['team/redis:7'])
    expect(
      findSimilarNames({ given: 'nosuch', name: 'docker.io/library/nosuch', others: [] }, [
        { name: 'docker.io/library/nginx:1', digest },
      ]),
    ).toEqual([])
    const error = createNotFoundError('Not cached', missing.slice(0, 1), images, {
      rm: 'mirror cache rm',
      ls: 'mirror cache ls',
    })
    expect(error.message).toBe('Not cached: nginx:1.2 (docker.io/library/nginx:1.2)')
    expect(error.hints).toEqual([
      'mirror cache rm docker.io/library/nginx:1.27   (did you mean this?)',
      'mirror cache rm docker.io/library/nginx:1.26',
      'mirror cache ls',
    ])
    expect(error.exit).toBe(2)
  })
})

describe('a name of a pushed image', () => {
  const pushed = {
    isOwnAddress: createAddressCheck(['http://127.0.0.1:5001'], ['172.18.0.1']),
    defaultUpstream: undefined,
    images: [{ name: 'redis:7', digest }],
  }
  test.each([
    ['redis:7', 'redis:7'],
    ['localhost:5001/redis:7', 'redis:7'],
    ['docker://localhost:5001/team/app:1', 'team/app:1'],
    ['172.18.0.1:5001/redis', 'redis'],
    ['localhost:5055/redis:7', 'localhost:5055/redis:7'],
    ['docker.io/redis:7', 'docker.io/redis:7'],
    [`localhost:5001/redis:7@${digest}`, `redis@${digest}`],
    ['redis@sha256:01234567', `redis@${digest}`],
  ])('%s means %s', (given, expected) => {
    expect(parseUserNames([given], pushed)[0]!.name).toBe(expected)
  })
})
