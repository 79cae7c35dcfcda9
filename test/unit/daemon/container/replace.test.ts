import { describe, expect, test } from 'vitest'
import { applyContainerPlan, recoverInterruptedReplace } from '../../../../src/daemon/container/reconcile.ts'
import {
  type ContainerApplyRequest,
  type DesiredContainer,
  planContainer,
} from '../../../../src/daemon/container/spec.ts'
import { findOwnContainer } from '../../../../src/daemon/container/stop.ts'
import type { ContainerState } from '../../../../src/docker/engine.ts'
import { MirrorError } from '../../../../src/lib/errors.ts'
import { type Clock, systemClock } from '../../../../src/lib/time.ts'
import { engineWithImage, orderFor, owner, desiredContainer } from '../../../support/desired-container.ts'
import type { FakeEngine, Outcome } from '../../../support/fake-engine.ts'

async function up(docker: FakeEngine, desired: DesiredContainer, difference: Partial<ContainerApplyRequest> = {}) {
  const plan = planContainer(desired, await findOwnContainer(docker, owner))
  return applyContainerPlan(docker, plan, orderFor(desired, difference))
}

const older = desiredContainer({ networks: ['kind'] })
const newer = desiredContainer({ networks: ['kind'], memory: 1024 })

/** Sets up an engine with the older container on the network kind. */
async function setEngine() {
  const docker = engineWithImage()
  await docker.networks.create({ name: 'kind', ipv6Subnet: undefined, options: {} })
  const { id } = await up(docker, older)
  docker.done.length = 0
  const failWith = (outcome: Outcome) => {
    docker.outcome = ({ memory }) => (memory === newer.memory ? outcome : 'answers')
  }
  return { docker, id, failWith }
}

async function expectAsBefore(docker: FakeEngine, id: string) {
  expect(await docker.containers.find('mirror')).toMatchObject({ id, running: true, networks: ['bridge', 'kind'] })
  expect(await docker.containers.find('mirror-before')).toBeUndefined()
  const answer = await fetch(`http://127.0.0.1:${docker.container('mirror')!.state.ports.at(-1)!.outside}/healthz`)
  expect(answer.status).toBe(200)
}

const getRefusal = (action: Promise<unknown>) =>
  action.then(
    () => expect.unreachable(),
    (error: unknown) => {
      expect(error).toBeInstanceOf(MirrorError)
      return error as MirrorError
    },
  )

/** Returns a clock that jumps ahead by a second with each read. */
function createFastClock(): Clock {
  let now = 0
  return { ...systemClock, monotonic: () => (now += 1000), sleep: () => Promise.resolve() }
}

describe('a container that is replaced', () => {
  test.each<[string, Outcome, string]>([
    ['ends at once', { code: 2, lines: ['mirror: The store is too new.'] }, 'The store is too new.'],
    ['ends without a message', { code: 139, lines: [] }, 'it ended with exit code 139.'],
    ['never answers', 'silent', 'it runs, but nothing answers at 127.0.0.1:5056 of this machine.'],
    ['finds its port taken', { refusal: 'Bind for 127.0.0.1:5055 failed: port is already allocated' }, 'Port 5055'],
    ['is refused by the engine', { refusal: 'no space left on device' }, 'no space left on device.'],
  ])('runs again when its successor %s', async (_, outcome, message) => {
    const { docker, id, failWith } = await setEngine()
    failWith(outcome)
    const error = await getRefusal(up(docker, newer, { clock: createFastClock() }))
    expect(error.message).toContain(message)
    expect(error.message).toMatch(/ The mirror that ran before runs again, as it was\.$/)
    expect(error.exit).toBe(typeof outcome === 'object' && 'code' in outcome && outcome.code === 2 ? 2 : 1)
    await expectAsBefore(docker, id)
    expect(docker.done.filter((what) => what.startsWith('create'))).toHaveLength(1)
    expect(docker.done).toContain('remove mirror')
  })

  test.each([
    ['cannot be stopped', 'stop mirror'],
    ['cannot be set aside', 'rename mirror mirror-before'],
    ['has a successor that cannot be created', 'create mirror'],
    ['has a successor that is given no files', 'unpack mirror'],
    ['has a successor that joins no network', 'connect kind'],
  ])('runs on, and the command fails with a MirrorError, when it %s', async (_, refused) => {
    const { docker, id } = await setEngine()
    docker.refuse = (what) => (what === refused ? 'not today' : undefined)
    expect((await getRefusal(up(docker, newer))).message).toMatch(
      /^The .*: not today\. The mirror that ran before runs/,
    )
    await expectAsBefore(docker, id)
  })

  test('runs again when the last step fails, and the caller learns its ports', async () => {
    const { docker, id } = await setEngine()
    const restored: ContainerState[] = []
    const settle = () => Promise.reject(new MirrorError('The state cannot be written.'))
    const putBack = async (container: ContainerState) => void restored.push(container)
    expect((await getRefusal(up(docker, newer, { onReady: settle, onRestored: putBack }))).message).toContain(
      'The state cannot be written. The',
    )
    await expectAsBefore(docker, id)
    expect(restored).toMatchObject([{ id, running: true }])
  })

  test('runs again when the signal aborts at any step', async () => {
    for (const step of [
      'stop mirror',
      'rename mirror mirror-before',
      'create mirror',
      'connect kind',
      'start mirror',
    ]) {
      const { docker, id } = await setEngine()
      const interrupt = new AbortController()
      docker.refuse = (what) => {
        if (what === step) interrupt.abort()
        return undefined
      }
      const error = await getRefusal(up(docker, newer, { signal: interrupt.signal }))
      expect(error, step).toMatchObject({ exit: 130, message: expect.stringMatching(/^Interrupted\. .* runs again/) })
      await expectAsBefore(docker, id)
    }
  })

  test('is not changed when the signal aborts before the first step', async () => {
    const { docker, id } = await setEngine()
    await expect(up(docker, newer, { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: 'AbortError' })
    await expectAsBefore(docker, id)
    expect(docker.done).toEqual([])
  })

  test('is reported as down, after the reason of the failure, when it cannot be restored', async () => {
    const { docker } = await setEngine()
    docker.outcome = { code: 2, lines: ['mirror: The store is too new.'] }
    expect((await getRefusal(up(docker, newer))).message).toBe(
      'The store is too new. The mirror that ran before could not be restored: The store is too new.',
    )
  })
})

describe('recovery from an interrupted up', () => {
  test('restores the container that was set aside and removes its successor', async () => {
    const { docker, id } = await setEngine()
    await docker.containers.stop(id, 1)
    await docker.containers.rename(id, 'mirror-before')
    await recoverInterruptedReplace(docker, { owner, recordedId: id, clock: systemClock })
    expect(await docker.containers.find('mirror')).toMatchObject({ id, running: true })

    await docker.containers.rename(id, 'mirror-before')
    await up(docker, newer)
    await recoverInterruptedReplace(docker, { owner, recordedId: id, clock: systemClock })
    expect(await docker.containers.find('mirror')).toMatchObject({ id })
    expect(await docker.containers.find('mirror-before')).toBeUndefined()
  })

  test('keeps a successor that is recorded as the mirror', async () => {
    const { docker, id } = await setEngine()
    await docker.containers.stop(id, 1)
    await docker.containers.rename(id, 'mirror-before')
    const successor = await up(docker, newer)
    await recoverInterruptedReplace(docker, { owner, recordedId: successor.id, clock: systemClock })
    expect(await docker.containers.find('mirror')).toMatchObject({ id: successor.id, running: true })
    expect(await docker.containers.find('mirror-before')).toBeUndefined()
  })

  test('does not change a container of another owner with the name', async () => {
    const { docker, id } = await setEngine()
    await docker.containers.rename(id, 'mirror-before')
    expect(
      (
        await getRefusal(
          recoverInterruptedReplace(docker, { owner: '/home/you/state', recordedId: undefined, clock: systemClock }),
        )
      ).message,
    ).toContain(owner)
    expect(await docker.containers.find('mirror-before')).toMatchObject({ id, running: true })
    await docker.containers.remove(id)
    await recoverInterruptedReplace(docker, { owner, recordedId: undefined, clock: systemClock })
  })
})
