import { describe, expect, test } from 'vitest'
import type { Machine } from '../../../src/clients/types.ts'
import { describeMachine } from '../../../src/clients/adapters.ts'
import { allSupportReferrers } from '../../../src/clients/address.ts'

const surroundings = { platform: 'linux', env: {}, homedir: '/home/me', cwd: '/', version: '0' } as never

/** Returns a machine whose programs print these versions, and that has no other program. */
async function machineWith(printed: Readonly<Record<string, string>>, root?: string) {
  return {
    ...(await describeMachine(surroundings, root)),
    runCommand: async (program: string) =>
      printed[program] === undefined ? undefined : { exitCode: 0, stdout: printed[program], stderr: '' },
  } as Machine
}

const containerd = (version: string) => `containerd github.com/containerd/containerd/v2 v${version} 75cb2b7193`

describe('the capability referrers in shared folders', () => {
  test.each([
    [{}, true],
    [{ containerd: containerd('2.2.0') }, true],
    [{ containerd: containerd('2.3.4'), nerdctl: 'nerdctl version 2.2.1\n' }, true],
    [{ containerd: containerd('2.1.4') }, false],
    [{ containerd: containerd('2.3.4'), nerdctl: 'nerdctl version 2.1.6\n' }, false],
    [{ containerd: 'containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3' }, false],
    [{ containerd: 'of no version' }, false],
  ])('is accepted by all of %j: %s', async (printed, isKnown) => {
    expect(await allSupportReferrers(await machineWith(printed), ['containerd', 'nerdctl'])).toBe(isKnown)
  })

  test('depends only on the given version with --root', async () => {
    const machine = await machineWith({ containerd: containerd('1.7.28') }, '/tree')
    expect(await allSupportReferrers(machine, ['containerd'])).toBe(true)
  })
})
