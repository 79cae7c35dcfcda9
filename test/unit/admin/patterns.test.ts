import { describe, expect, test } from 'vitest'
import { createAddressCheck, createNotFoundError, listMatches, parseUserNames } from '../../../src/admin/names.ts'
import { findMatches, isPattern } from '../../../src/admin/patterns.ts'

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`
const names = [
  'docker.io/library/app:1',
  'docker.io/library/app:old-1',
  'docker.io/library/app:old-2',
  'docker.io/library/tool:old-1',
  `docker.io/library/app@${digest}`,
  'docker.io/team/app:old-1',
  'docker.io/team/sub/app:old-1',
  'ghcr.io/team/app:old-1',
  'registry.corp.example:5000/app:old-1',
]
const images = names.map((name) => ({ name, digest }))

describe('a pattern', () => {
  test.each<[string, string[]]>([
    [
      'docker.io/library/*:old-*',
      ['docker.io/library/app:old-1', 'docker.io/library/app:old-2', 'docker.io/library/tool:old-1'],
    ],
    ['docker.io/library/app:old-?', ['docker.io/library/app:old-1', 'docker.io/library/app:old-2']],
    ['docker.io/library/app:?', ['docker.io/library/app:1']],
    ['docker.io/library/ap*:1', ['docker.io/library/app:1']],
    ['docker.io/*:old-1', []],
    ['docker.io/*/app:old-1', ['docker.io/library/app:old-1', 'docker.io/team/app:old-1']],
    [
      'docker.io/**/app:old-1',
      ['docker.io/library/app:old-1', 'docker.io/team/app:old-1', 'docker.io/team/sub/app:old-1'],
    ],
    ['docker.io/team/**:old-1', ['docker.io/team/app:old-1', 'docker.io/team/sub/app:old-1']],
    ['docker.io/team/**/app:old-1', ['docker.io/team/app:old-1', 'docker.io/team/sub/app:old-1']],
    ['**:old-2', ['docker.io/library/app:old-2']],
    ['*:5000/*:old-*', ['registry.corp.example:5000/app:old-1']],
    ['docker.io/library/*', ['docker.io/library/app', 'docker.io/library/tool']],
    ['**/app@sha256:0123*', [`docker.io/library/app@${digest}`]],
    [
      'docker.io/library/app:*',
      ['docker.io/library/app:1', 'docker.io/library/app:old-1', 'docker.io/library/app:old-2'],
    ],
    ['docker.io/library/app:o.d-1', []],
    ['docker.io/library/ap?.?:1', []],
    ['nothing*', []],
  ])('%s matches %j', (pattern, expected) => {
    expect(findMatches(pattern, images)).toEqual(expected)
  })

  test('with a tag never matches an image that only has a digest, and one with a digest no tag', () => {
    for (const pattern of ['**:*', '**:sha256*', '**:*0123*'])
      expect(findMatches(pattern, images).filter((name) => name.includes('@'))).toEqual([])
    expect(findMatches('**@*', images)).toEqual([`docker.io/library/app@${digest}`])
  })

  test('takes the other characters of regular expressions as they are', () => {
    const odd = [{ name: 'a.b/c+(d)[e]:1', digest }]
    expect(findMatches('a.b/c+(d)[e]:?', odd)).toEqual(['a.b/c+(d)[e]:1'])
    expect(findMatches('aXb/*:1', odd)).toEqual([])
    expect(['a:1', 'a*', 'a?'].map(isPattern)).toEqual([false, true, true])
  })

  test('of many wildcards needs no long time', () => {
    const long = [{ name: `${'a'.repeat(200)}:${'a'.repeat(120)}`, digest }]
    const begun = performance.now()
    expect(findMatches('*a*a*a*b:*a*a*a*b', long)).toEqual([])
    expect(performance.now() - begun).toBeLessThan(2000)
  })
})

describe('a pattern as a user writes it', () => {
  const cached = {
    isOwnAddress: createAddressCheck(['http://127.0.0.1:5055']),
    defaultUpstream: 'docker.io',
    images,
  }
  const read = (given: string) => parseUserNames([given], cached).map(({ name }) => name)

  test.each<[string, string[]]>([
    ['*:old-*', ['docker.io/library/app:old-1', 'docker.io/library/app:old-2', 'docker.io/library/tool:old-1']],
    ['app:old-?', ['docker.io/library/app:old-1', 'docker.io/library/app:old-2']],
    ['team/*:old-1', ['docker.io/team/app:old-1']],
    ['ghcr.io/**:old-1', ['ghcr.io/team/app:old-1']],
    ['127.0.0.1:5055/ghcr.io/team/*:old-1', ['ghcr.io/team/app:old-1']],
    ['docker://ghcr.io/team/*:old-1', ['ghcr.io/team/app:old-1']],
    ['*.corp.example:5000/*:*', ['registry.corp.example:5000/app:old-1']],
  ])('%s means %j', (given, expected) => {
    expect(read(given)).toEqual(expected)
  })

  test('has no registry in the registry for pushed images', () => {
    const pushed = {
      isOwnAddress: createAddressCheck(['http://127.0.0.1:5001']),
      defaultUpstream: undefined,
      images: ['app:1', 'app:old-1', 'app:old-2', 'team/app:old-1'].map((name) => ({ name, digest })),
    }
    const find = (given: string) => parseUserNames([given], pushed).map(({ name }) => name)
    expect(find('app:old-*')).toEqual(['app:old-1', 'app:old-2'])
    expect(find('localhost:5001/**:old-1')).toEqual(['app:old-1', 'team/app:old-1'])
  })

  test('needs consent when it matches several, and not when it matches one', () => {
    expect(listMatches(['app:old-*', 'app:old-1'], cached)).toHaveLength(2)
    expect(listMatches(['app:1*'], cached)).toEqual([])
    expect(listMatches(['app:1', 'ghcr.io/team/app:old-1'], cached)).toEqual([])
  })

  test.each(['ap*', '*', '**', 'app:*'])('of one repository with several tags needs consent: %s', (given) => {
    const tags = ['1', '2', '3']
    const isOwnAddress = createAddressCheck(['http://127.0.0.1:5001'])
    const toImages = (repository: string) => tags.map((tag) => ({ name: `${repository}:${tag}`, digest }))
    const pushed = { isOwnAddress, defaultUpstream: undefined, images: toImages('app') }
    const cachedTags = { isOwnAddress, defaultUpstream: 'docker.io', images: toImages('docker.io/library/app') }
    expect(listMatches([given], pushed)).not.toEqual([])
    expect(listMatches([given], cachedTags)).not.toEqual([])
    expect(listMatches([given], { ...pushed, images: pushed.images.slice(0, 1) })).toEqual([])
  })

  test('that matches nothing is not found, as any other name, and suggests no other image', () => {
    const [missing, ...others] = parseUserNames(['nothing:*'], cached)
    expect(others).toEqual([])
    const error = createNotFoundError('Not cached', [missing!], images, {
      rm: 'mirror cache rm',
      ls: 'mirror cache ls',
    })
    expect(error).toMatchObject({ exit: 2, hints: ['mirror cache ls'] })
    expect(error.message).toBe('Not cached: nothing:* (docker.io/library/nothing:*)')
  })
})
