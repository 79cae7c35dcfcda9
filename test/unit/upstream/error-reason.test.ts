import { gzipSync } from 'node:zlib'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../../src/oci/reference.ts'
import { parseReason } from '../../../src/upstream/failures.ts'
import { failureOf, openUpstream } from '../../support/upstream/open-upstream.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

const tag = { kind: 'tag', tag: 'v1' } as const
const digest = computeDigest(Buffer.from('x'))
const anonymous = { access: 'anonymous' } as const
const sentence = 'image is blocked by policy 7: 3 critical findings'
const oci = (message: string) => JSON.stringify({ errors: [{ code: 'DENIED', message }] })

/** Serves a registry that gives this answer to every request. */
const refusing = (status: number, body: string | Uint8Array, headers: Record<string, string> = {}) =>
  serve((_, response) => reply(response, status, headers, body))

describe('the first error message of a body is found', () => {
  test.each([
    ['in errors, as the specification has it', oci(sentence)],
    ['in the second of them, when the first has none', `{"errors":[{"code":"A"},{"message":"${sentence}"}]}`],
    ['in a detail, when there is no message', `{"errors":[{"code":"A","message":"","detail":"${sentence}"}]}`],
    ['in an object within a detail', `{"errors":[{"code":"A","detail":{"message":"${sentence}"}}]}`],
    ['in message', `{"message":"${sentence}","error_type":"x"}`],
    ['in details, as Docker Hub has it', `{"details":"${sentence}"}`],
    ['in error_description rather than error', `{"error":"invalid_grant","error_description":"${sentence}"}`],
    ['in error', `{"error":"${sentence}"}`],
    ['in the detail of a problem document', `{"title":"Forbidden","detail":"${sentence}","status":403}`],
    ['in a list', `[{"message":"${sentence}"}]`],
    ['in plain text', `  ${sentence}\n`],
    ["in a page's title", `<!DOCTYPE html><html><head><title>${sentence}</title></head><body>x</body></html>`],
    ["in a storage's XML", `<?xml version="1.0"?><Error><Code>X</Code><Message>${sentence}</Message></Error>`],
  ])('%s', (_, body) => {
    expect(parseReason(body)).toBe(sentence)
  })

  test.each([
    ['nothing', ''],
    ['an empty object', '{}'],
    ['broken JSON', '{"errors":[{"message":"'],
    ['only a code', '{"errors":[{"code":"DENIED"}]}'],
    ['numbers', '{"message":7}'],
    ['a page without a title', '<html><body>Please log in</body></html>'],
    ['no text at all', '\u0000\u0001\uFFFD\uFFFD'],
    ['dots', '...'],
    ['too deep an object', '{"detail":{"detail":{"detail":{"detail":{"detail":"x"}}}}}'],
  ])('but not in %s', (_, body) => {
    expect(parseReason(body)).toBeUndefined()
  })
})

describe('a reason is one clean line', () => {
  test.each([
    ['line breaks and tabs', 'a\r\nb\tc', 'a b c'],
    ['colours of a terminal', '\u001b[31mred\u001b[0m alert', 'red alert'],
    ['control and format characters', 'a\u0000b\u009fc\u202ed\u2066e', 'a b c d e'],
    ['halves of characters', 'a\ud800b', 'a b'],
    ['tags', 'see <a href="https://x.test/y">the <b>policy</b></a>', 'see the policy'],
    ['a comparison, which is no tag', '3 < 5', '3 < 5'],
    ['credentials in a URL', 'see https://u:p@x.test/a', 'see https://…@x.test/a'],
    ['signed parameters', 'see https://x.test/a?X-Amz-Signature=abc&a=b', 'see https://x.test/a?X-Amz-Signature=…&a=b'],
    ['authorization values', 'bad Bearer abcdefghijkl', 'bad Bearer …'],
    ['web tokens', 'bad eyJhbGciOi.eyJzdWIi.c2ln here', 'bad … here'],
  ])('without %s', (_, message, shown) => {
    expect(parseReason(oci(message))).toBe(shown)
  })

  test('of at most 300 characters', () => {
    expect(parseReason(oci('é'.repeat(5000)))).toBe(`${'é'.repeat(300)}…`)
  })

  test.each(['hunter2', Buffer.from('hunter2').toString('base64'), 'hunt%C3%A9r'])(
    'without what was sent: %s',
    (echo) => {
      expect(parseReason(oci(`no user has ${echo} there`), ['hunter2', 'huntér'])).toBe('no user has … there')
    },
  )

  test('and is missing if it contains a secret that is too short to be redacted', () => {
    expect(parseReason(oci('no cat here'), ['cat'])).toBeUndefined()
    expect(parseReason(oci('no dog here'), ['cat'])).toBe('no dog here')
  })
})

describe("the registry's own reason is in the failure", () => {
  test.each([400, 401, 402, 403, 404, 405, 406, 409, 410, 412, 423, 428, 431, 451, 501])(
    'of a %i for a manifest, a blob and a list',
    async (status) => {
      const upstream = openUpstream((await refusing(status, oci(sentence))).url)
      const asked = [
        upstream.manifest('a', tag, anonymous),
        upstream.blob('a', digest, { ...anonymous, from: 0 }),
        upstream.tags('a', '', anonymous),
      ]
      for (const error of await Promise.all(asked.map(failureOf))) expect(error.message).toContain(sentence)
    },
  )

  test.each([500, 502, 503, 504])('of a %i', async (status) => {
    const upstream = openUpstream((await refusing(status, oci(sentence))).url)
    expect((await failureOf(upstream.manifest('a', tag, anonymous))).message).toContain(sentence)
  })

  test('and stays with a limit that is remembered', async () => {
    const server = await refusing(429, oci(sentence), { 'retry-after': '30' })
    const upstream = openUpstream(server.url)
    for (let asked = 0; asked < 2; asked++)
      expect((await failureOf(upstream.manifest('a', tag, anonymous))).message).toContain(sentence)
    expect(server.log).toHaveLength(1)
  })

  test('also from a body that comes packed', async () => {
    const server = await refusing(403, gzipSync(oci(sentence)), { 'content-encoding': 'gzip' })
    expect((await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))).message).toContain(sentence)
  })

  test.each([
    ['a body that only repeats the status', 404, '404 page not found'],
    ['a body that only names the status', 403, 'Forbidden'],
    ['a body that cannot be unpacked', 403, 'no gzip'],
  ])('without %s', async (_, status, body) => {
    const server = await refusing(status, body, body === 'no gzip' ? { 'content-encoding': 'gzip' } : {})
    expect((await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))).message).not.toContain(body)
  })

  test('of a body without an end, whose connection is dropped', async () => {
    const server = await serve((_, response) => {
      response.writeHead(403, { 'content-type': 'text/plain' })
      const more = () => {
        while (!response.destroyed && response.write('because '.repeat(8192)));
      }
      response.on('drain', more)
      more()
    })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect([error.failure, error.message.length < 400]).toEqual(['denied', true])
    expect(error.message).toContain('because because')
  })

  test('of a body that stops half-way', async () => {
    const server = await serve((_, response) => {
      response.writeHead(403, { 'content-type': 'text/plain', 'content-length': 1000 })
      response.write(sentence)
    })
    expect((await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))).message).toContain(sentence)
  })

  test('but not the credential that it repeats', async () => {
    const server = await serve((request, response) => {
      const { authorization } = request.headers
      if (!authorization) return reply(response, 401, { 'www-authenticate': 'Basic realm="x"' })
      const pair = Buffer.from(authorization.slice(6), 'base64').toString()
      reply(response, 403, {}, oci(`${pair} and ${authorization.slice(6)} may not`))
    })
    const upstream = openUpstream(server.url, {
      credentials: { from: 'password-env', username: 'ann', passwordEnv: 'PASSWORD' },
      env: { PASSWORD: 'hunter2' },
    })
    const { message } = await failureOf(upstream.manifest('a', tag, { access: 'credentialed' }))
    expect(message).toMatch(/: … and … may not$/)
  })
})

describe("a token server's own reason is in the failure", () => {
  test.each([
    [400, '{"error":"invalid_grant","error_description":"account locked"}', 'denied'],
    [401, '{"details":"account locked"}', 'denied'],
    [403, oci('account locked'), 'denied'],
    [412, '{"message":"account locked"}', 'denied'],
    [404, 'account locked', 'invalid'],
    [503, '{"message":"account locked"}', 'unavailable'],
  ])('of a %i with %s', async (status, body, failure) => {
    const server = await serve((request, response) => {
      if (request.url!.startsWith('/token')) return reply(response, status, {}, body)
      reply(response, 401, { 'www-authenticate': `Bearer realm="${server.url}/token",service="it"` })
    })
    const error = await failureOf(openUpstream(server.url).manifest('a', tag, anonymous))
    expect(error.failure).toBe(failure)
    expect(error.message).toMatch(/: account locked$/)
    expect(error.message).not.toContain('www-authenticate')
  })
})
