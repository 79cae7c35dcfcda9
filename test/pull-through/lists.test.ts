import type { IncomingHttpHeaders } from 'node:http'
import { describe, expect, test } from 'vitest'
import { mediaType } from '../../src/oci/content.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { endless, status } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'

const host = 'registry.example:5000'
const json = (body: Buffer) => JSON.parse(body.toString()) as Record<string, unknown>
const linkOf = (headers: IncomingHttpHeaders) => /^<([^>]+)>; rel="next"$/.exec(String(headers['link'] ?? ''))?.[1]

/** pages has the tags a to e, two a page; a token names each page except the first one. */
const pages: Record<string, { readonly tags: string[]; readonly next?: string }> = {
  '': { tags: ['a', 'b'], next: 'k/1==' },
  'k/1==': { tags: ['c', 'd'], next: 'k&2' },
  'k&2': { tags: ['e'] },
}

interface Style {
  readonly name: string
  readonly link: (token: string, base: string) => string
  /** Reads the token back; undefined when a parameter got lost. */
  readonly read: (query: URLSearchParams) => string | undefined
}

const path = '/v2/org/app/tags/list'
const encoded = encodeURIComponent
const styles: Style[] = [
  {
    name: 'a token of its own',
    link: (token) => `<${path}?n=2&next_page=${encoded(token)}>; rel="next"`,
    read: (query) => query.get('next_page') ?? '',
  },
  {
    name: 'an absolute URL and an unquoted relation',
    link: (token, base) => `<${base}${path}?n=2&continuationToken=${encoded(token)}>; rel=next`,
    read: (query) => query.get('continuationToken') ?? '',
  },
  {
    name: 'a URL of another host and path',
    link: (token) => `<https://internal.example:8443/backend/list?token=${encoded(token)}>; rel="next"`,
    read: (query) => query.get('token') ?? '',
  },
  {
    name: 'several parameters that belong together',
    link: (token) => `<${path}?last=${encoded(token)}&n=2&orderby=timedesc>; rel="next"`,
    read: (query) => {
      const token = query.get('last') ?? ''
      return token === '' || query.get('orderby') === 'timedesc' ? token : undefined
    },
  },
  {
    name: 'a query alone, among other links',
    link: (token) => `<${path}>; rel="first", <?page=${encoded(token)}>; rel="next"; title="a, b"`,
    read: (query) => query.get('page') ?? '',
  },
  {
    name: 'an ns of its own',
    link: (token) => `<${path}?ns=elsewhere.example&page=${encoded(token)}>; rel="next"`,
    read: (query) => (query.has('ns') ? undefined : (query.get('page') ?? '')),
  },
]

const shapes = [
  ['by its name in the path', `/v2/${host}/org/app/tags/list`],
  ['below upstream/', `/v2/upstream/${host}/org/app/tags/list`],
  ['before /v2/', `/${host}/v2/org/app/tags/list`],
  ['by ns', `/v2/org/app/tags/list?ns=${encoded(host)}`],
  ['by ns and name', `/v2/${host}/org/app/tags/list?n=2&ns=${encoded(host)}`],
] as const

async function startPaged(fault: Fault): Promise<TestMirror> {
  const upstream = await startUpstream()
  upstream.on({ path }, fault)
  return startTestMirror({ upstreams: { [host]: upstream.url } })
}

/** Follows the links as a client does, ten pages at most. */
async function walk(mirror: TestMirror, first: string): Promise<{ tags: string[]; links: string[] }> {
  const tags: string[] = []
  const links: string[] = []
  for (let next: string | undefined = first; next !== undefined && links.length < 10;) {
    const answer = await mirror.get(next)
    expect([answer.status, answer.headers['content-type']]).toEqual([200, 'application/json'])
    tags.push(...(json(answer.body)['tags'] as string[]))
    next = linkOf(answer.headers)
    if (next !== undefined) links.push(next)
  }
  return { tags, links }
}

describe.each(styles)('an upstream that names the next page by $name', ({ link, read }) => {
  test.each(shapes)('is listed completely, %s', async (_, first) => {
    const mirror = await startPaged(({ request, response }) => {
      const token = read(new URL(request.url!, 'http://upstream.invalid').searchParams)
      const page = token === undefined ? undefined : pages[token]
      if (!page) return send(response, { status: 400 })
      const headers = page.next === undefined ? {} : { link: link(page.next, 'http://127.0.0.1:1') }
      send(response, { status: 200, headers, body: Buffer.from(JSON.stringify({ name: 'x', tags: page.tags })) })
    })
    const { tags, links } = await walk(mirror, first)
    expect(tags).toEqual(['a', 'b', 'c', 'd', 'e'])
    for (const each of links) {
      expect(each.split('?')[0]).toBe(first.split('?')[0])
      expect(new URL(each, mirror.url).searchParams.getAll('ns')).toEqual(first.includes('ns=') ? [host] : [])
    }
  })
})

test("a client's query parameters reach the upstream unchanged, without ns", async () => {
  const { upstream, mirror, image } = await startScene()
  await mirror.get(`${app}/tags/list?n=2&last=a%2Bb&x=%7E+y&ns=docker.io`)
  expect(upstream.requests.at(-1)!.path).toBe(`${app}/tags/list?n=2&last=a%2Bb&x=%7E+y`)
  await mirror.get(`${app}/referrers/${image.digest}?ns=docker.io&artifactType=a/b%2Bc&n=5`)
  expect(upstream.requests.map(({ path: each }) => each)).toContain(
    `${app}/referrers/${image.digest}?artifactType=a/b%2Bc&n=5`,
  )
})

describe('an endless list', () => {
  test.each(['?n=2', '', '?page=k1'])('ends where its upstream links to the same page again: %s', async (query) => {
    const mirror = await startPaged(({ response }) =>
      send(response, {
        status: 200,
        headers: { link: `<${path}?n=2&page=k1>; rel="next"` },
        body: Buffer.from('{"name":"x","tags":["a"]}'),
      }),
    )
    const { tags, links } = await walk(mirror, `/v2/${host}/org/app/tags/list${query}`)
    expect(tags.length).toBeLessThanOrEqual(2)
    expect(links.length).toBeLessThanOrEqual(1)
  })

  test('of referrers ends as well', async () => {
    const { upstream, mirror, image } = await startScene()
    const body = Buffer.from('{"manifests":[]}')
    const link = `<${app}/referrers/${image.digest}?token=x>; rel="next"`
    upstream.on({ path: /\/referrers\// }, ({ response }) => send(response, { status: 200, headers: { link }, body }))
    const first = await mirror.get(`${app}/referrers/${image.digest}`)
    expect(linkOf(first.headers)).toBe(`${app}/referrers/${image.digest}?token=x`)
    expect(linkOf((await mirror.get(linkOf(first.headers)!)).headers)).toBeUndefined()
  })
})

describe('the forwarded body', () => {
  const answer = (body: string, type = 'text/html'): Fault => {
    return ({ response }) => send(response, { status: 200, headers: { 'content-type': type }, body: Buffer.from(body) })
  }

  test('of a list of tags is JSON with all its members, under the requested name', async () => {
    const mirror = await startPaged(
      answer(
        '{"child":[],"manifest":{"sha256:x":{"tag":["a"]}},"__proto__":{"x":1},"name":"prefix/org/app","tags":["a"]}',
      ),
    )
    const list = await mirror.get(`/v2/${host}/org/app/tags/list`)
    expect(list.headers['content-type']).toBe('application/json')
    expect(list.body.toString()).toBe(
      '{"child":[],"manifest":{"sha256:x":{"tag":["a"]}},"__proto__":{"x":1},"name":"org/app","tags":["a"]}',
    )
  })

  test('of a repository with null tags is an empty list', async () => {
    const mirror = await startPaged(answer('{"name":"x","tags":null}'))
    expect(json((await mirror.get(`/v2/${host}/org/app/tags/list`)).body)).toEqual({ name: 'org/app', tags: [] })
  })

  test.each([
    ['an HTML page', '<html><script>alert(1)</script></html>'],
    ['another JSON', '{"errors":[]}'],
    ['a list of something else', '{"tags":[1]}'],
    ['JSON that is nested too deeply', `{"tags":[],"x":${'['.repeat(100_000)}${']'.repeat(100_000)}}`],
  ])('is never %s', async (_, body) => {
    const mirror = await startPaged(answer(body))
    expectError(await mirror.get(`/v2/${host}/org/app/tags/list`), 502)
  })

  test('may be a list of tags of 10 MB, but not an endless one', async () => {
    const tags = Array.from({ length: 100_000 }, (_, at) => `${at}-`.padEnd(100, 'x'))
    const mirror = await startPaged(answer(JSON.stringify({ name: 'x', tags })))
    const list = await mirror.get(`/v2/${host}/org/app/tags/list`)
    expect((json(list.body)['tags'] as string[]).length).toBe(100_000)
    expectError(await (await startPaged(endless)).get(`/v2/${host}/org/app/tags/list`), 502)
  })

  test('of a list of referrers keeps annotations and unknown members, with the media type of an index', async () => {
    const { upstream, mirror, image } = await startScene()
    const entry = {
      mediaType: 'a/b',
      digest: image.digest,
      size: 1,
      annotations: { a: 'b' },
      data: 'e30=',
      x: { y: [1] },
    }
    const index = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [entry], annotations: { c: 'd' }, z: 1 }
    upstream.on({ path: /\/referrers\// }, answer(JSON.stringify(index)))
    const list = await mirror.get(`${app}/referrers/${image.digest}`)
    expect(list.headers['content-type']).toBe(mediaType.ociIndex)
    expect(json(list.body)).toEqual(index)
  })

  test('of a registry that answers its referrers API with a web page is the list under the referrers tag', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on({ path: /\/referrers\// }, answer('<html></html>'))
    const list = await mirror.get(`${app}/referrers/${image.digest}`)
    expect([list.status, json(list.body)['manifests']]).toEqual([200, []])
  })
})

describe('while the upstream is down', () => {
  test('cached tags replace the first page of a list, and no page that only the upstream can resolve', async () => {
    const { upstream, mirror, image } = await startScene()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    upstream.on({}, status(503))
    for (const query of ['', '?n=5', '?n=5&last=a']) {
      const list = await mirror.get(`${app}/tags/list${query}`)
      expect(json(list.body)['tags']).toEqual(['v1'])
      expect(list.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
    }
    expectError(await mirror.get(`${app}/tags/list?next_page=k1`), [502, 503])
  })

  test('the catalog of cached repositories links to its next page, with its ns', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.push('library/b', 'v1', image)
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get('/v2/library/b/manifests/v1')
    const first = await mirror.get('/v2/_catalog?n=1&ns=docker.io')
    expect(linkOf(first.headers)).toBe('/v2/_catalog?n=1&last=docker.io%2Flibrary%2Fapp&ns=docker.io')
    const second = await mirror.get(linkOf(first.headers)!)
    expect([json(second.body), linkOf(second.headers)]).toEqual([{ repositories: ['docker.io/library/b'] }, undefined])
  })
})
