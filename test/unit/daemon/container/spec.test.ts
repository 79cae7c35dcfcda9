import { describe, expect, test } from 'vitest'
import { createContainerSpec, planContainer, type DesiredContainer } from '../../../../src/daemon/container/spec.ts'
import type { ContainerState } from '../../../../src/docker/engine.ts'

const desired: DesiredContainer = {
  version: '1.0.0',
  owner: '/home/me/state',
  image: { id: 'sha256:a', hasEntrypoint: false },
  configHashes: { cache: '1', registry: '2' },
  files: 'f',
  ports: {
    cache: { inside: 5055, outside: 5055 },
    registry: { inside: 5001, outside: 5001 },
    admin: { inside: 5056, outside: 5056 },
  },
  networks: ['kind'],
  data: { volume: 'mirror-data' },
  user: '1000:1000',
  memory: 512,
  env: { HTTPS_PROXY: 'http://proxy.example' },
  extraCa: undefined,
  engine: { logDriver: 'json-file' },
}

/** Returns the state of a container that was created from the desired one. */
function actual(made: DesiredContainer = desired): ContainerState {
  const { labels, user } = createContainerSpec(made, 'instance')
  const times = { startedAt: '', running: true, restarting: false, exitCode: 0 }
  return {
    id: 'c',
    name: 'mirror',
    labels,
    user,
    image: made.image.id,
    networks: ['bridge', 'kind'],
    ports: [],
    ...times,
  }
}

describe('the plan for a desired container', () => {
  test('creates it when there is none, keeps it when it is as desired, starts it when it has stopped', () => {
    expect(planContainer(desired, undefined)).toEqual({ action: 'create' })
    expect(planContainer(desired, actual())).toEqual({ action: 'keep', connect: [], disconnect: [] })
    expect(planContainer(desired, { ...actual(), running: false })).toMatchObject({ action: 'start' })
  })

  test.each<[string, Partial<DesiredContainer>]>([
    ['version', { version: '1.0.1' }],
    ['image', { image: { id: 'sha256:b', hasEntrypoint: false } }],
    ['cache', { configHashes: { cache: 'other', registry: '2' } }],
    ['ports', { ports: { ...desired.ports, registry: undefined } }],
    ['data', { data: { folder: '/data' } }],
    ['user', { user: '0:0' }],
    ['memory', { memory: 1024 }],
    ['environment', { env: {} }],
    ['files', { files: 'g' }],
  ])('replaces it when its %s differs', (part, difference) => {
    expect(planContainer({ ...desired, ...difference }, actual())).toEqual({ action: 'replace', changed: [part] })
  })

  test('replaces it when its labels are damaged', () => {
    const { labels, ...rest } = actual()
    const plan = planContainer(desired, { ...rest, labels: { ...labels, 'dev-mirror.settings': '{' } })
    expect(plan.action).toBe('replace')
  })

  test('replaces it when it lacks the alias that bypasses proxies', () => {
    const { labels, ...rest } = actual()
    const { names: _, ...settings } = JSON.parse(labels['dev-mirror.settings']!) as Record<string, string>
    const older = { ...rest, labels: { ...labels, 'dev-mirror.settings': JSON.stringify(settings) } }
    expect(planContainer(desired, older)).toEqual({ action: 'replace', changed: ['names'] })
  })

  test('connects and disconnects networks without a restart, except for the default one', () => {
    expect(planContainer({ ...desired, networks: ['compose'] }, actual())).toEqual({
      action: 'keep',
      connect: ['compose'],
      disconnect: ['kind'],
    })
  })

  test('has log options only for drivers that know them', () => {
    expect(createContainerSpec(desired, 'i').logOptions).toEqual({ 'max-size': '16m', 'max-file': '2' })
    expect(createContainerSpec({ ...desired, engine: { logDriver: 'journald' } }, 'i').logOptions).toEqual({})
  })

  test('runs the mirror in an image without an entrypoint', () => {
    expect(createContainerSpec(desired, 'i').entrypoint).toEqual(['/usr/local/bin/node', '/mirror/bin/run.js'])
    const image = { ...desired.image, hasEntrypoint: true }
    expect(createContainerSpec({ ...desired, image }, 'i').entrypoint).toBeUndefined()
  })
})
