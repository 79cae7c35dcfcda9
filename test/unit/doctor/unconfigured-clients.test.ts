import { expect, test } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { listClientTasks } from '../../../src/doctor/clients.ts'
import type { DoctorContext, Outcome } from '../../../src/doctor/context.ts'
import { machineWith } from '../../support/clients/machine-with.ts'

test('of a client that is not configured, the doctor counts only the checks that apply to its files', async () => {
  const { machine, home } = await machineWith({ 'podman --version': 'podman version 4.3.1\n' })
  const surroundings = { platform: 'linux', env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  const context: DoctorContext = {
    surroundings,
    machine: { ...machine, root: home },
    paths: mirrorPaths(surroundings),
    version: '0.1.0',
    found: Promise.resolve(undefined),
    status: Promise.resolve(undefined),
    config: Promise.resolve(defaultConfig()),
    probeUpstreams: async () => [],
    clients: ['podman'],
    pull: false,
    signal: new AbortController().signal,
    probeSignal: new AbortController().signal,
  }
  const outcomes: Outcome[] = []
  for (const task of await listClientTasks(context)) await task.run((one) => outcomes.push(one))
  expect(outcomes.map(({ id, state }) => [id, state])).toEqual([
    ['clients.configured', 'warn'],
    ['clients.podman.syntax', 'ok'],
  ])
})
