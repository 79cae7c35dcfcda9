import type { AddressInfo } from 'node:net'
import { describe, expect, test } from 'vitest'
import {
  applyContainerPlan,
  refuseForeignVolume,
  refuseTakenPorts,
} from '../../../../src/daemon/container/reconcile.ts'
import {
  type ContainerApplyRequest,
  type DesiredContainer,
  planContainer,
} from '../../../../src/daemon/container/spec.ts'
import { findOwnContainer, removeVolume } from '../../../../src/daemon/container/stop.ts'
import type { ContainerSpec } from '../../../../src/docker/engine.ts'
import { MirrorError } from '../../../../src/lib/errors.ts'
import { systemClock } from '../../../../src/lib/time.ts'
import { engineWithImage, orderFor, owner, desiredContainer } from '../../../support/desired-container.ts'
import type { FakeEngine, Outcome } from '../../../support/fake-engine.ts'

async function up(docker: FakeEngine, desired: DesiredContainer, difference: Partial<ContainerApplyRequest> = {}) {
  const plan = planContainer(desired, await findOwnContainer(docker, owner))
  return applyContainerPlan(docker, plan, orderFor(desired, difference))
}

const other = (name: string, port: number): ContainerSpec => ({
  name,
  image: 'image',
  entrypoint: ['/bin/sh', '-c'],
  command: ['sleep 60'],
  env: {},
  user: '0:0',
  labels: {},
  ports: [{ inside: 80, outside: port }],
  data: { at: '/data', from: { volume: 'other' } },
  memory: 0,
  restarts: false,
  healthCheck: undefined,
  logOptions: {},
})

const getRefusal = (action: Promise<unknown>) =>
  action.then(
    () => expect.unreachable(),
    (error: unknown) => {
      expect(error).toBeInstanceOf(MirrorError)
      return error as MirrorError
    },
  )

describe('the container', () => {
  test('is created, gets its files and networks before it starts, and is awaited', async () => {
    const docker = engineWithImage()
    await docker.networks.create({ name: 'kind', ipv6Subnet: undefined, options: {} })
    const container = await up(docker, desiredContainer({ networks: ['kind'] }))
    expect(container.running).toBe(true)
    expect(docker.done).toEqual(['network kind IPv4', 'create mirror', 'connect kind', 'start mirror'])
    expect(docker.container('mirror')!.unpacked).toMatchObject([{ folder: '/data' }])
  })

  test('is kept when it is as desired, and replaced otherwise', async () => {
    const docker = engineWithImage()
    await up(docker, desiredContainer())
    docker.done.length = 0
    await up(docker, desiredContainer())
    expect(docker.done).toEqual([])
    await up(docker, desiredContainer({ memory: 1024 }))
    expect(docker.done).toEqual([
      'stop mirror',
      'rename mirror mirror-before',
      'create mirror',
      'start mirror',
      'remove mirror-before',
    ])
  })

  test.each<[string, Outcome | 'interrupt']>([
    ['never answers', 'silent'],
    ['ends at once', { code: 1, lines: [] }],
    ['is interrupted', 'interrupt'],
  ])('that was stopped is stopped again when its start %s, because another mirror needs the ports', async (_, end) => {
    const docker = engineWithImage()
    await up(docker, desiredContainer())
    await docker.containers.stop('mirror', 0)
    const interrupt = new AbortController()
    if (end !== 'interrupt') docker.outcome = end
    docker.refuse = (what) => void (what === 'start mirror' && end === 'interrupt' && interrupt.abort())
    let now = 0
    const clock = { ...systemClock, monotonic: () => (now += 10_000), sleep: () => Promise.resolve() }
    await expect(up(docker, desiredContainer(), { signal: interrupt.signal, clock })).rejects.toThrow()
    expect(docker.done.at(-1)).toBe('stop mirror')
    expect(docker.container('mirror')!.state).toMatchObject({ running: false, restarting: false })
  })

  test('that is starting gets its files after it answers, because it reads them at the start', async () => {
    const docker = engineWithImage()
    await up(docker, desiredContainer())
    const { server, unpacked } = docker.container('mirror')!
    const { port } = server!.address() as AddressInfo
    await new Promise((resolve) => server!.close(resolve))
    const again = up(docker, desiredContainer())
    await new Promise((resolve) => setTimeout(resolve, 200))
    expect(unpacked).toHaveLength(1)
    server!.listen(port, '127.0.0.1')
    await again
    expect(unpacked).toHaveLength(2)
  })

  test('is never changed when it does not belong to mirror', async () => {
    const docker = engineWithImage()
    await docker.containers.create(other('mirror', 80))
    expect((await getRefusal(findOwnContainer(docker, owner))).message).toContain('does not belong to mirror')
    await docker.containers.remove('mirror')
    await up(docker, desiredContainer())
    expect((await getRefusal(findOwnContainer(docker, '/home/you/state'))).message).toContain(owner)
  })

  test('is not replaced when another program has taken its name since the plan', async () => {
    const docker = engineWithImage()
    await up(docker, desiredContainer())
    const desired = desiredContainer({ memory: 1024 })
    const plan = planContainer(desired, await findOwnContainer(docker, owner))
    await docker.containers.remove('mirror')
    const otherContainer = await docker.containers.create(other('mirror', 80))
    expect((await getRefusal(applyContainerPlan(docker, plan, orderFor(desired)))).message).toContain(
      'does not belong to mirror',
    )
    expect(docker.container(otherContainer)).toBeDefined()
  })

  test('does not use the volume of another mirror', async () => {
    const docker = engineWithImage()
    await up(docker, desiredContainer())
    await docker.containers.remove('mirror')
    expect(await docker.volumes.find('mirror-data')).toEqual({ labels: { 'dev-mirror.owner': owner } })
    const stranger = desiredContainer({ owner: '/home/you/state' })
    expect((await getRefusal(refuseForeignVolume(docker, stranger))).message).toContain(owner)
    expect((await getRefusal(removeVolume(docker, '/home/you/state'))).message).toContain(owner)
    await refuseForeignVolume(docker, desiredContainer())
    expect(await removeVolume(docker, owner)).toBe(true)
    expect(await removeVolume(docker, owner)).toBe(false)

    await docker.volumes.create('mirror-data', {})
    await refuseForeignVolume(docker, desiredContainer())
    expect((await getRefusal(removeVolume(docker, owner))).hints[0]).toContain('docker volume rm mirror-data')
  })

  test('reports the container that has its port', async () => {
    const docker = engineWithImage()
    await docker.containers.start(await docker.containers.create(other('web', 5055)))
    const { message, hints } = await getRefusal(refuseTakenPorts(docker, desiredContainer().ports))
    expect(message).toBe('Port 5055 (cache) is already in use by the container web.')
    expect(hints[0]).toBe('mirror up --runtime container --cache-port 6055')
  })

  test('shares a port with containers on other addresses, like in the engine', async () => {
    const docker = engineWithImage()
    const id = await docker.containers.create(other('web', 5055))
    await docker.containers.start(id)
    for (const address of ['192.168.1.2', '::', '127.0.0.2']) {
      docker.addresses.set(id, address)
      await refuseTakenPorts(docker, desiredContainer().ports)
    }
    docker.addresses.set(id, '0.0.0.0')
    expect((await getRefusal(refuseTakenPorts(docker, desiredContainer().ports))).message).toContain(
      'the container web',
    )
  })

  test('that ends at once is an error with its message and exit code, and is removed', async () => {
    const docker = engineWithImage()
    docker.outcome = {
      code: 2,
      lines: ['{"level":"info"}', 'mirror: The store is too new.', '', 'Next:', '  Update mirror'],
    }
    const error = await getRefusal(up(docker, desiredContainer()))
    expect(error).toMatchObject({ message: 'The store is too new.', exit: 2, hints: ['Update mirror'] })
    expect(docker.container('mirror')).toBeUndefined()
    expect(await docker.volumes.find('mirror-data'), 'it holds nothing').toBeUndefined()
    await docker.volumes.create('mirror-data', {})
    await getRefusal(up(docker, desiredContainer()))
    expect(await docker.volumes.find('mirror-data')).toBeDefined()
  })

  test('that ends without a message is an error with the end of its log', async () => {
    const docker = engineWithImage()
    docker.outcome = { code: 139, lines: ['Segmentation fault'] }
    const error = await getRefusal(up(docker, desiredContainer()))
    expect(error.message).toContain('exit code 139')
    expect(error.hints).toEqual(['Segmentation fault'])
  })
})
