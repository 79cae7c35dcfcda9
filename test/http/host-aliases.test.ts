import { expect, test } from 'vitest'
import { hostAliases } from '../../src/lib/network.ts'
import { expectError } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { startTestRegistry } from '../support/registry.ts'

const uploads = '/v2/app/blobs/uploads/'
const as = (host: string) => ({ headers: { host } })

test.each(hostAliases)(
  'a container that reaches the loopback of its host as %s pulls, and changes nothing by mistake',
  async (alias) => {
    const registry = await startTestRegistry()
    const image = makeImage()
    await registry.push('app', 'v1', image)
    const location = await registry.begin('app')
    const { port } = new URL(registry.url)
    for (const host of [`${alias}:${port}`, alias, `${alias.toUpperCase()}.:${port}`]) {
      expect((await registry.ask('GET', '/v2/app/manifests/v1', as(host))).status).toBe(200)
      for (const [method, path] of [
        ['POST', uploads],
        ['PUT', '/v2/app/manifests/v2'],
        ['DELETE', '/v2/app/manifests/v1'],
        ['GET', location],
      ] as const) {
        const answer = await registry.ask(method, path, as(host))
        expectError(answer, 403, 'DENIED')
        expect(answer.body.toString()).toContain('registry.networks: write')
      }
    }
    for (const host of [`localhost:${port}`, `127.0.0.1:${port}`, `mirror:${port}`])
      expect((await registry.ask('POST', uploads, as(host))).status, host).toBe(202)
  },
)

test('a container pushes by the name of its host where registry.networks is write', async () => {
  const registry = await startTestRegistry({ registry: { networks: 'write' } })
  expect((await registry.ask('POST', uploads, as('host.docker.internal:5001'))).status).toBe(202)
})
