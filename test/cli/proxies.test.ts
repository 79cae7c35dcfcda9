import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { temporaryHome } from '../support/mirror.ts'
import { serveHttpProxy, serveSocksProxy } from '../support/proxies.ts'
import { startUpstream } from '../support/upstream.ts'

const image = makeImage({ layers: [1000] })
const unset = {
  http_proxy: '',
  https_proxy: '',
  HTTPS_PROXY: '',
  all_proxy: '',
  ALL_PROXY: '',
  no_proxy: '',
  NO_PROXY: '',
}

/** Starts the program with these variables and a docker.io that only a proxy can reach. */
async function startScene(env: Record<string, string>) {
  return startMirrorProcess({ upstreams: { 'docker.io': 'http://registry.test' }, env: { ...unset, ...env } })
}

test('`mirror demo` sends no request to a proxy, not even to one on this machine', async () => {
  const proxy = await serveHttpProxy({ to: '127.0.0.1:1' })
  const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
  const env = { PATH: process.env['PATH'], HOME: await temporaryHome(), http_proxy: proxy.host }
  const demo = spawn(process.execPath, [program, 'demo'], { env, stdio: 'ignore' })
  expect(await once(demo, 'exit')).toEqual([0, null])
  expect(proxy.log).toEqual([])
})

describe('the built program pulls', () => {
  test.each(['socks5h', 'socks4a'])('through a proxy that speaks %s', async (scheme) => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const proxy = await serveSocksProxy({ to: upstream.host })
    const mirror = await startScene({ ALL_PROXY: `${scheme}://${proxy.host}` })
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
    for (const digest of image.blobs.keys()) expectContent(await mirror.get(`/v2/library/app/blobs/${digest}`), digest)
    expect(new Set(proxy.log)).toEqual(
      new Set([`${scheme.slice(0, 6)} name registry.test:80`.replace('socks4a', 'socks4')]),
    )
  })

  test('through an HTTP proxy with a password, and never shows the password', async () => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const proxy = await serveHttpProxy({ to: upstream.host, login: 'me:correct-horse' })
    const mirror = await startScene({ http_proxy: `me:correct-horse@${proxy.host}`, HTTP_PROXY: 'http://127.0.0.1:1' })
    expectContent(await mirror.get('/v2/library/app/manifests/v1'), image.digest)
    await upstream.stop()
    const failed = await mirror.get('/v2/library/app/manifests/v2')
    expectError(failed, [502, 503, 504])
    expect(mirror.log() + failed.body.toString()).not.toContain('correct-horse')
  })

  test('directly when only HTTP_PROXY is set, and logs that it does', async () => {
    const proxy = await serveHttpProxy({ to: '127.0.0.1:1' })
    const mirror = await startScene({ HTTP_PROXY: proxy.host })
    expectError(await mirror.get('/v2/library/app/manifests/v1'), [502, 504])
    expect(proxy.log).toEqual([])
    expect(mirror.log()).toContain('HTTP_PROXY in upper case is not used, as in curl')
  })
})
