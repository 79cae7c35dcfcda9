import { describe, expect, inject, test } from 'vitest'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { setStage } from './support/scene.ts'

const { missing, newer } = inject('e2e')

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('%s that listens on the loopback', (_, root) => {
  test('a mirror runs in a container of an engine at a TCP port of the loopback', async () => {
    const stage = await setStage({ content: {} })
    const hosts = [`unix://${dockerSocket(stage.folder)}`, 'tcp://127.0.0.1:2375']
    await startDockerd(stage, root, { hosts })
    const command = await mirrorCommand(stage, { networks: [] }, { DOCKER_HOST: 'tcp://127.0.0.1:2375' })
    expect(await command.up('--runtime', 'container')).toMatchObject({ outcome: 'started', container: 'mirror' })
    expect(await command.status()).toMatchObject({ running: true, runtime: 'container' })
    expect(await command.mirror('logs')).toContain('the mirror is up')
    expect(await command.mirror('down', '--volumes', '--yes')).toContain('Deleted its volume')
  })
})
