import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { get } from '../support/get.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'

const index = '<!doctype html><script type="module" src="/assets/app-1a2b.js"></script>'
const script = 'document.title = "mirror"'

async function startWithPage() {
  const pageFolder = await temporaryHome()
  await mkdir(join(pageFolder, 'assets'))
  await writeFile(join(pageFolder, 'index.html'), index)
  await writeFile(join(pageFolder, 'assets', 'app-1a2b.js'), script)
  await writeFile(join(pageFolder, 'assets', 'app-1a2b.css'), 'body{margin:0}')
  await writeFile(join(pageFolder, 'assets', 'app-1a2b.js.map'), '{}')
  await writeFile(join(pageFolder, 'icon.svg'), '<svg/>')
  const mirror = await startTestMirror({ pageFolder })
  return { mirror, pageFolder }
}

/** Makes sure that a page may run only its own scripts, and that no other page embeds it. */
function expectStrict(headers: Readonly<Record<string, unknown>>): void {
  expect(headers).toMatchObject({
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'permissions-policy': expect.stringContaining('camera=()'),
  })
  const policy = String(headers['content-security-policy']).split('; ')
  expect(policy).toEqual(
    expect.arrayContaining([
      "default-src 'none'",
      "script-src 'self'",
      "connect-src 'self'",
      "frame-ancestors 'none'",
      "base-uri 'none'",
      "form-action 'none'",
      "require-trusted-types-for 'script'",
    ]),
  )
  expect(policy.join(' ')).not.toMatch(/unsafe|\*/)
  expect(headers).not.toHaveProperty('access-control-allow-origin')
}

describe('the files of the dashboard', () => {
  test('are served at their exact names, with their types and strict headers, without the token', async () => {
    const { mirror } = await startWithPage()
    for (const [path, type, body] of [
      ['/', 'text/html; charset=utf-8', index],
      ['/assets/app-1a2b.js', 'text/javascript; charset=utf-8', script],
      ['/assets/app-1a2b.css', 'text/css; charset=utf-8', 'body{margin:0}'],
      ['/icon.svg', 'image/svg+xml', '<svg/>'],
      ['/?query', 'text/html; charset=utf-8', index],
    ] as const) {
      const answer = await get(mirror.adminUrl, path)
      expect([answer.status, answer.headers['content-type'], answer.body.toString()]).toEqual([200, type, body])
      expectStrict(answer.headers)
      const head = await get(mirror.adminUrl, path, { method: 'HEAD' })
      expect([head.status, head.headers['content-length'], head.body.length]).toEqual([200, String(body.length), 0])
    }
  })

  test('are kept by browsers when their names have a hash, and confirmed by their ETag otherwise', async () => {
    const { mirror } = await startWithPage()
    const { headers: asset } = await get(mirror.adminUrl, '/assets/app-1a2b.js')
    expect(asset['cache-control']).toBe('public, max-age=31536000, immutable')
    const { headers: page } = await get(mirror.adminUrl, '/')
    expect(page['cache-control']).toBe('no-cache')
    const again = await get(mirror.adminUrl, '/', { headers: { 'if-none-match': page['etag']! } })
    expect([again.status, again.body.length]).toEqual([304, 0])
    expectStrict(again.headers)
    const other = await get(mirror.adminUrl, '/', { headers: { 'if-none-match': asset['etag']! } })
    expect(other.status).toBe(200)
  })

  test('are the only ones: no other path, in any notation, reaches a file', async () => {
    const { mirror, pageFolder } = await startWithPage()
    for (const path of [
      '/index.html',
      '/assets/',
      '/assets/app.js',
      '/assets/app-1a2b.js.map',
      '/assets/../index.html',
      '/assets/%2e%2e/index.html',
      '/assets/..%2f..%2f..%2fetc%2fpasswd',
      '/assets/../../../../etc/passwd',
      '/assets//app-1a2b.js',
      '/assets/app-1a2b.js%00.html',
      '/assets/__proto__',
      `/assets/${pageFolder}/index.html`,
    ]) {
      const answer = await get(mirror.adminUrl, path)
      expect([path, answer.status]).toEqual([path, 404])
    }
  })

  test('stay available when the folder is removed while the mirror runs', async () => {
    const { mirror, pageFolder } = await startWithPage()
    await rm(pageFolder, { recursive: true })
    expect((await get(mirror.adminUrl, '/')).body.toString()).toBe(index)
  })

  test('are refused to other Hosts and other sites', async () => {
    const { mirror } = await startWithPage()
    const ask = async (headers: Record<string, string>) => (await get(mirror.adminUrl, '/', { headers })).status
    expect(await ask({ host: 'evil.example' })).toBe(421)
    expect(await ask({ 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' })).toBe(403)
    expect(await ask({ 'sec-fetch-site': 'same-site', 'sec-fetch-dest': 'iframe' })).toBe(403)
    expect(await ask({ 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate' })).toBe(200)
  })

  test('are replaced by one sentence about the command that shows the same, in a build without them', async () => {
    const mirror = await startTestMirror({ pageFolder: join(await temporaryHome(), 'absent') })
    const answer = await get(mirror.adminUrl, '/')
    expect([answer.status, answer.headers['content-type']]).toEqual([404, 'text/plain; charset=utf-8'])
    expect(answer.body.toString()).toContain('mirror status')
    expectStrict(answer.headers)
  })
})
