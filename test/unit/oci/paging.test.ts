import { describe, expect, test } from 'vitest'
import { isSamePage, parseNextPage, removeNamespace } from '../../../src/oci/headers.ts'

describe('the next page that a Link header names', () => {
  test.each([
    ['</v2/a/tags/list?n=2&last=b>; rel="next"', 'n=2&last=b'],
    ['</v2/a/tags/list?next_page=gAAAA%3D%3D>; rel="next"', 'next_page=gAAAA%3D%3D'],
    ['<https://registry.example/v2/a/tags/list?n=2&continuationToken=k1>; rel=next', 'n=2&continuationToken=k1'],
    ['<//other.example/x?last=b&n=2&orderby=timedesc>;rel=next', 'last=b&n=2&orderby=timedesc'],
    ['<?last=b>; rel="next"', 'last=b'],
    ['<list?last=b>; rel="next"', 'last=b'],
    ['</x?last=b>; REL="Next"', 'last=b'],
    ['</x?last=b>; rel="last next"', 'last=b'],
    ['</x?last=b> ; title="a, b; c=\\"d\\"" ; rel="next"', 'last=b'],
    ['</x?last=a>; rel="prev", </x?last=b>; rel="next"', 'last=b'],
    ['</x?last=b>; rel="next", </x?last=z>; rel="last"', 'last=b'],
    ['</x?last=a,b;c>; rel="next"', 'last=a,b;c'],
    ['</x?last=b&ns=docker.io>; rel="next"', 'last=b'],
    ['</x?last=b#fragment>; rel="next"', 'last=b'],
    ['</x?last=ü "b">; rel="next"', 'last=%C3%BC%20%22b%22'],
  ])('is read from %s', (link, query) => {
    expect(parseNextPage(link)).toBe(query)
  })

  test.each([
    [undefined],
    [''],
    ['nonsense'],
    ['<'],
    ['<>; rel="next"'],
    ['</x?last=b>'],
    ['</x?last=b>; rel="prev"'],
    ['</x?last=b>; rel="prev"; rel="next"'],
    ['</x?last=b>; rel="nextish"'],
    ['</x?last=b>; rel="next"; anchor="/y"'],
    ['</x>; rel="next"'],
    ['</x?ns=docker.io>; rel="next"'],
    ['<http://[>; rel="next"'],
    [`<${'<'.repeat(10_000)}`],
    [`</x>${';'.repeat(10_000)}`],
    [`</x>; a="${'\\'.repeat(9999)}`],
  ])('is none in %.60s', (link) => {
    expect(parseNextPage(link)).toBeUndefined()
  })
})

test('removeNamespace removes ns from a query in any spelling, and nothing else', () => {
  expect(removeNamespace('n=2&ns=docker.io&last=a%2Bb+c&%6Es=x&nsx=1&x')).toBe('n=2&last=a%2Bb+c&nsx=1&x')
  expect(removeNamespace('ns=docker.io')).toBe('')
})

test('two queries mean the same page when they start at the same position', () => {
  expect(isSamePage('', 'n=100')).toBe(true)
  expect(isSamePage('n=2&last=b', 'last=b&n=50')).toBe(true)
  expect(isSamePage('last=a%2fb', 'last=a/b')).toBe(true)
  expect(isSamePage('n=2&last=b', 'n=2&last=c')).toBe(false)
  expect(isSamePage('n=2', 'n=2&next_page=k')).toBe(false)
})
