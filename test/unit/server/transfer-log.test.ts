import { expect, onTestFinished, test } from 'vitest'
import type { Logger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import type { ManifestLink } from '../../../src/oci/content.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { TransferLog } from '../../../src/server/transfer-log.ts'

function open() {
  const lines: Record<string, unknown>[] = []
  const ignore = () => {}
  const info = (fields: object, message: string) => void lines.push({ message, ...fields })
  const logger: Logger = { debug: ignore, info, warn: ignore, error: ignore }
  const log = new TransferLog({ logger, clock: systemClock })
  onTestFinished(() => log.close())
  const begin = (client: string, agent = 'docker') =>
    log.begin({ listener: 'cache', client, agent, repository: 'docker.io/library/app' })
  return { lines, begin }
}

const digest = computeDigest(Buffer.from('manifest'))
const links = Array.from({ length: 27_000 }, (_, at): ManifestLink => ({
  kind: 'blob',
  digest: computeDigest(Buffer.from(`${at}`)),
  size: 1,
  mediaType: 'x/y',
}))
const manifest = (tag: string) => ({ kind: 'manifest', tag, digest, links, bytes: 1, outcome: 'hit' }) as const

test.each([
  ['many clients', (at: number) => [`client-${at}`, 'docker', 'v1'] as const],
  ['one client under many names', (at: number) => ['client', `agent-${at}`, 'v1'] as const],
  ['one client by many tags', (at: number) => ['client', 'docker', `v${at}`] as const],
])('the log remembers only some of the images with 27,000 layers that %s pull, and sums up the others', (_, nameOf) => {
  const { lines, begin } = open()
  // Leaves one request of each open, so that its pulls do not end.
  for (let at = 0; at < 30; at++) {
    const [client, agent, tag] = nameOf(at)
    begin(client, agent)
    begin(client, agent)(manifest(tag))
  }
  expect(lines.length).toBeGreaterThanOrEqual(20)
  expect(lines[0]).toMatchObject({ message: 'pull', image: 'docker.io/library/app:v1'.replace('v1', nameOf(0)[2]) })
})

test('a pull of ordinary size is remembered while others run', () => {
  const { lines, begin } = open()
  for (let at = 0; at < 900; at++) {
    begin(`client-${at}`)
    begin(`client-${at}`)({ ...manifest('v1'), links: links.slice(0, 30) })
  }
  expect(lines).toEqual([])
})

test('transfers of an activity that was removed to make room are not remembered', () => {
  const { lines, begin } = open()
  const dropped = Array.from({ length: 20 }, (_, at) => begin(`dropped-${at}`))
  for (let at = 0; at < 1000; at++) begin(`client-${at}`)
  for (const end of dropped) end(manifest('v1'))
  begin('client-0')
  begin('client-0')({ ...manifest('v1'), links: links.slice(0, 30) })
  expect(lines).toEqual([])
})

test('a layer counts for the last pull that names it, and after the end of that for the one before', () => {
  const { lines, begin } = open()
  const [shared, own] = [links.slice(0, 1), links.slice(1, 2)]
  const blob = ([link]: typeof links) => ({ kind: 'blob', digest: link!.digest, bytes: 10, outcome: 'hit' }) as const
  const pull = (tag: string, named: typeof links) =>
    ({ ...manifest(tag), digest: computeDigest(Buffer.from(tag)), links: named }) as const
  begin('client')
  begin('client')(pull('v1', [...shared, ...own]))
  begin('client')(pull('v2', shared))
  begin('client')(blob(shared))
  // The second pull is complete: another request of its manifest ends it, and begins the third one.
  begin('client')(pull('v2', []))
  begin('client')(blob(shared))
  begin('client')(blob(own))
  begin('client')(pull('v1', []))
  expect(lines).toMatchObject([
    { image: 'docker.io/library/app:v2', bytes: 11 },
    { image: 'docker.io/library/app:v1', bytes: 21 },
  ])
})
