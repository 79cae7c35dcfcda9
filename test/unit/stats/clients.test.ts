import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { beforeEach, describe, expect, test } from 'vitest'
import { type ClientIdentity, type ClientRequest, SeenClients } from '../../../src/stats/clients.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const noon = Date.UTC(2026, 10, 30, 12)
let now = 0
const clock = { wall: () => noon + now, monotonic: () => now }
beforeEach(() => void (now = 0))

const containerd = 'containerd/2.1.9'

type Sent = Partial<ClientRequest & ClientIdentity>

/** Returns the arguments of `record` for a GET of a manifest. */
function request({ address = '127.0.0.1', agent = containerd, ...changes }: Sent = {}): [
  ClientIdentity,
  ClientRequest,
] {
  const sent: ClientRequest = {
    listener: 'cache',
    registry: 'docker.io',
    kind: 'manifest',
    isHead: false,
    byTag: true,
    isSuccess: true,
    result: 'hit',
    bytes: 10,
    ...changes,
  }
  return [{ address, agent }, sent]
}

const head = (changes: Sent = {}) => request({ isHead: true, bytes: 0, ...changes })

describe('the clients that were seen', () => {
  test('are counted by address, listener and product', () => {
    const clients = new SeenClients(clock)
    clients.record(...request())
    now += 1000
    clients.record(...request({ kind: 'blob', byTag: false, result: 'miss', bytes: 100 }))
    clients.record(...request({ kind: 'other', byTag: false, result: undefined }))
    now += 1000
    clients.record(...request({ address: '172.18.0.2' }))
    clients.record(...request({ listener: 'registry', registry: undefined, result: undefined }))
    clients.record(...request({ agent: 'docker/28.0.1' }))
    expect(clients.list()).toHaveLength(4)
    expect(clients.list().find(({ requests }) => requests === 3)).toEqual({
      address: '127.0.0.1',
      listener: 'cache',
      product: 'containerd',
      version: '2.1.9',
      requests: 3,
      hits: 1,
      misses: 1,
      bytes: 120,
      firstSeen: new Date(noon).toISOString(),
      lastSeen: new Date(noon + 1000).toISOString(),
      headOnly: [],
    })
  })

  test.each([
    ['containerd/2.1.9', 'containerd', '2.1.9'],
    ['containerd/v1.7.23-k3s2', 'containerd', '1.7.23-k3s2'],
    ['containerd/1.6.20+unknown', 'containerd', '1.6.20'],
    ['docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 UpstreamClient(Docker-Client/20.10)', 'docker', '20.10.24'],
    ['buildkit/v0.0-dev', 'buildkit', '0.0-dev'],
    ['containers/5.29.2 (github.com/containers/image)', 'containers', '5.29.2'],
    ['Watchtower (Docker)', 'Watchtower', undefined],
    ['curl/', 'curl', undefined],
    ['  ', 'unknown', undefined],
    ['', 'unknown', undefined],
    ['evil\u001B[2J/1\u0007', 'evil?[2J', '1'],
    [`${'x'.repeat(200)}/${'1'.repeat(200)}`, 'x'.repeat(40), '1'.repeat(40)],
  ])('have the product and version of %j', (agent, product, version) => {
    const clients = new SeenClients(clock)
    clients.record(...request({ agent }))
    expect(clients.list()[0]).toMatchObject({ product, ...(version !== undefined && { version }) })
    expect(clients.list()[0]!.version).toBe(version)
  })

  test('of one product have the version that was seen last', () => {
    const clients = new SeenClients(clock)
    clients.record(...request({ agent: 'containerd/2.1.8' }))
    clients.record(...request({ agent: 'containerd/2.1.9' }))
    expect(clients.list()).toMatchObject([{ version: '2.1.9', requests: 2 }])
  })

  test('are at most 200, and the ones that were not seen for longest are forgotten', () => {
    const clients = new SeenClients(clock)
    clients.record(...request({ address: 'first' }))
    for (let at = 0; at < 5000; at++) {
      now += 1
      clients.record(...request({ address: `10.0.${at >> 8}.${at & 255}` }))
      clients.record(...request({ address: 'first', agent: `containerd/${at}` }))
    }
    expect(clients.list()).toHaveLength(200)
    const first = clients.list().find(({ address }) => address === 'first')
    expect(first).toMatchObject({ requests: 5001, version: '4999' })
    expect(clients.list().some(({ address }) => address === '10.0.19.135')).toBe(true)
    expect(clients.list().some(({ address }) => address === '10.0.0.1')).toBe(false)
  })

  test('begin again after they were forgotten, also on the same connection', () => {
    const clients = new SeenClients(clock)
    const [connection, sent] = request({ address: 'first' })
    clients.record(connection, sent)
    clients.record(connection, sent)
    for (let at = 0; at < 200; at++) {
      now += 1
      clients.record(...request({ address: `10.0.0.${at}` }))
    }
    expect(clients.list().some(({ address }) => address === 'first')).toBe(false)
    clients.record(connection, sent)
    expect(clients.list().find(({ address }) => address === 'first')?.requests).toBe(1)
  })

  test('are the same after a restart', async () => {
    const path = join(await temporaryFolder(), 'clients.json')
    const clients = new SeenClients(clock)
    clients.record(...request())
    clients.record(...request({ agent: '', address: '::1' }))
    clients.record(...head({ registry: 'ghcr.io' }))
    await clients.save(path)
    now += 3_600_000
    const loaded = new SeenClients(clock)
    await loaded.load(path)
    expect(loaded.list()).toEqual(clients.list())
    loaded.record(...head())
    now += 60_000
    expect(loaded.list().find(({ product }) => product === 'containerd')).toMatchObject({
      requests: 3,
      headOnly: ['ghcr.io'],
    })
  })

  test.each([
    ['no JSON', 'x'],
    ['no clients', '{}'],
    ['something else as clients', '{"clients":{}}'],
    ['entries that are none', '{"clients":[null,1,"x",{},{"address":1},{"address":"a","product":"b","listener":"c"}]}'],
    ['times that are none', `{"clients":[{"address":"a","product":"b","listener":"cache","firstSeen":1e300}]}`],
  ])('are none after a restart with a file that holds %s', async (_, text) => {
    const path = join(await temporaryFolder(), 'clients.json')
    await writeFile(path, text)
    const clients = new SeenClients(clock)
    await clients.load(path)
    expect(clients.list()).toEqual([])
    clients.record(...request())
    await clients.save(path)
    await clients.load(path)
    expect(clients.list()).toHaveLength(1)
  })
})

describe('a client that only sends HEAD', () => {
  function listHeadOnly(clients: SeenClients): readonly string[] {
    return clients.list()[0]!.headOnly
  }

  test('for a tag is reported after 10 s, with the registry', () => {
    const clients = new SeenClients(clock)
    clients.record(...head())
    now += 9999
    expect(listHeadOnly(clients)).toEqual([])
    now += 1
    expect(listHeadOnly(clients)).toEqual(['docker.io'])
    clients.record(...request({ registry: 'ghcr.io' }))
    expect(listHeadOnly(clients)).toEqual(['docker.io'])
  })

  test.each([
    ['a manifest', {}],
    ['a blob', { kind: 'blob', byTag: false }],
    ['content that is not there', { isSuccess: false }],
  ] as const)('is not reported any more after a GET of %s', (_, changes) => {
    const clients = new SeenClients(clock)
    clients.record(...head())
    now += 60_000
    clients.record(...request(changes))
    expect(listHeadOnly(clients)).toEqual([])
    clients.record(...head())
    now += 60_000
    expect(listHeadOnly(clients)).toEqual([])
  })

  test('is not reported when it has pulled from the registry before: it has the image', async () => {
    const path = join(await temporaryFolder(), 'clients.json')
    const clients = new SeenClients(clock)
    clients.record(...request())
    await clients.save(path)
    const loaded = new SeenClients(clock)
    await loaded.load(path)
    loaded.record(...head())
    now += 60_000
    expect(listHeadOnly(loaded)).toEqual([])
  })

  test.each([
    ['for a tag that does not exist', { isSuccess: false }],
    ['for a digest', { byTag: false }],
    ['for a blob', { kind: 'blob', byTag: false }],
    ['to watch a tag, as other programs do', { agent: 'Watchtower (Docker)' }],
    ['on the registry', { listener: 'registry', registry: undefined }],
  ] as const)('is not reported %s', (_, changes) => {
    const clients = new SeenClients(clock)
    clients.record(...head(changes))
    now += 60_000
    expect(listHeadOnly(clients)).toEqual([])
  })
})
