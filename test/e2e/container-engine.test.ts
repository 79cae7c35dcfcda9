import { describe, inject } from 'vitest'
import { openEngineAt } from '../../src/docker/dockerode-engine.ts'
import { dockerEngineContract } from '../contract/docker-engine.ts'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { busyboxTar } from './support/runnable-image.ts'
import { setStage } from './support/scene.ts'

const { missing, newer } = inject('e2e')

describe.skipIf(missing !== undefined).each([
  ["this Debian's own", ''],
  ["Debian's newest", newer],
])('%s Docker engine', (_, root) => {
  dockerEngineContract(async () => {
    const stage = await setStage({ content: {} })
    const { feed } = await startDockerd(stage, root, {})
    await feed(await busyboxTar(), 'import', '-', 'busybox:local')
    const engine = await openEngineAt({ kind: 'socket', path: dockerSocket(stage.folder) })
    return { engine, shell: 'busybox:local' }
  })
})
