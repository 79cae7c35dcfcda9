import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { hash } from 'bcryptjs'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectError } from '../support/expect-content.ts'
import { hostilePaths } from '../support/hostile-paths.ts'
import { temporaryHome } from '../support/mirror.ts'
import { rawGet, rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'

const basic = (text: string) => ({ authorization: `Basic ${Buffer.from(text).toString('base64')}` })

describe('registry.auth.htpasswd', () => {
  test('admits only clients with a valid password, to read and to write', async () => {
    const home = await temporaryHome()
    const htpasswd = join(home, 'htpasswd')
    await writeFile(htpasswd, `# people\ndev:${await hash('s3:cret', 4)}\n`)
    const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
    for (const headers of [
      {},
      basic('dev:wrong'),
      basic('nobody:s3:cret'),
      basic('dev'),
      { authorization: 'Bearer x' },
    ])
      for (const [method, path] of [
        ['GET', '/v2/'],
        ['GET', '/v2/_catalog'],
        ['POST', '/v2/app/blobs/uploads/'],
      ] as const) {
        const answer = await registry.ask(method, path, { headers })
        expectError(answer, 401, 'UNAUTHORIZED')
        expect(answer.headers['www-authenticate']).toMatch(/^Basic realm="mirror"/)
      }
    for (let at = 0; at < 2; at++) expect((await registry.get('/v2/', basic('dev:s3:cret'))).status).toBe(200)
    const headers = basic('dev:s3:cret')
    expect((await registry.ask('POST', '/v2/app/blobs/uploads/', { headers })).status).toBe(202)
    expect(registry.log.join('\n')).not.toContain('s3:cret')
    expect(registry.log.join('\n')).not.toContain(headers.authorization.slice(6))
  })

  test('shows an upload only to the user who began it', async () => {
    const home = await temporaryHome()
    const htpasswd = join(home, 'htpasswd')
    await writeFile(htpasswd, `one:${await hash('1', 4)}\ntwo:${await hash('2', 4)}\n`)
    const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
    const [one, two] = [basic('one:1'), basic('two:2')]
    const begun = await registry.ask('POST', '/v2/app/blobs/uploads/', { headers: one })
    const location = begun.headers.location!
    const digest = computeDigest(Buffer.from('x'))
    for (const method of ['GET', 'PATCH', 'PUT', 'DELETE']) {
      const target = `${location}?digest=${digest}`
      const body = method.startsWith('P') ? { body: 'x' } : {}
      expectError(await registry.ask(method, target, { headers: two, ...body }), 404, 'BLOB_UPLOAD_UNKNOWN')
    }
    expect((await registry.ask('PUT', `${location}?digest=${digest}`, { headers: one, body: 'x' })).status).toBe(201)
  })

  test('takes effect at once when the file changes', async () => {
    const home = await temporaryHome()
    const htpasswd = join(home, 'htpasswd')
    await writeFile(htpasswd, `dev:${await hash('old', 4)}\n`)
    const registry = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
    expect((await registry.get('/v2/', basic('dev:old'))).status).toBe(200)
    await writeFile(htpasswd, `developer:${await hash('new', 4)}\n`)
    expect((await registry.get('/v2/', basic('dev:old'))).status).toBe(401)
    expect((await registry.get('/v2/', basic('developer:new'))).status).toBe(200)
  })

  test.each([
    ['that is missing', undefined],
    ['with an entry that is not bcrypt', 'dev:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n'],
  ])('with a file %s is refused at start', async (_what, text) => {
    const home = await temporaryHome()
    const htpasswd = join(home, 'htpasswd')
    if (text !== undefined) await writeFile(htpasswd, text)
    await expect(startTestRegistry({ home, registry: { auth: { htpasswd } } })).rejects.toThrow(/htpasswd/)
  })
})

test('paths outside the registry API are a 400 or a 404, whatever the method', async () => {
  const registry = await startTestRegistry()
  const hostile = [
    ...hostilePaths,
    '/v2/app/blobs/uploads/..%2f..%2fx',
    '/v2/app/blobs/uploads/%00',
    '/v2/app/blobs/uploads/a/b',
  ]
  for (const path of hostile)
    for (const method of ['GET', 'PUT', 'PATCH', 'DELETE']) {
      const { statuses } = await rawHttp(registry.url, rawGet(path).replace('GET', method))
      expect([400, 404, 405], `${method} ${path}`).toContain(statuses[0])
    }
})

test.each(['POST /v2/app/blobs/uploads/', 'GET /v2/'])(
  '%s with a body that never comes is answered, and holds its connection for seconds only',
  async (line) => {
    const { url } = await startTestRegistry()
    const head = `${line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n`
    const { statuses, closed } = await rawHttp(url, head, 9000)
    expect(statuses).toEqual([line.startsWith('POST') ? 202 : 200])
    expect(closed).toBe(true)
  },
  12_000,
)
