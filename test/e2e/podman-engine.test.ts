import { describe, expect, inject, test } from 'vitest'
import { dockerEngineContract } from '../contract/docker-engine.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { startPodmanService } from './support/podman-service.ts'
import { busyboxTar } from './support/runnable-image.ts'
import { setStage } from './support/scene.ts'

const { missing } = inject('e2e')

describe.skipIf(missing !== undefined)("podman's socket", () => {
  dockerEngineContract(
    async () => {
      const stage = await setStage({ content: {} })
      const { engine } = await startPodmanService(stage, await busyboxTar())
      return { engine, shell: 'busybox:local' }
    },
    { hasNetworkEvents: false },
  )

  test("a mirror runs in a container behind podman's socket", async () => {
    const stage = await setStage({ content: {} })
    const { socket } = await startPodmanService(stage, await busyboxTar())
    const { mirror, up, status } = await mirrorCommand(stage, {}, { DOCKER_HOST: `unix://${socket}` })
    const { endpoints } = await up('--runtime', 'container')
    expect(endpoints.networks).toStrictEqual({ kind: 'http://mirror.svc:5055' })
    expect(await up()).toMatchObject({ outcome: 'already-up' })
    expect(await status()).toMatchObject({ running: true, runtime: 'container', endpoints })
    await mirror('down', '--volumes', '--yes')
  })
})
