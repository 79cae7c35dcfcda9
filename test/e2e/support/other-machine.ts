import { inject, onTestFinished } from 'vitest'
import { type NetworkNamespace, addNetworkNamespace } from './network-namespace.ts'
import { run } from './run.ts'

/** The address by which the other machine of a stage is reached from this one. */
export const otherAddress = '10.201.0.1'

/**
 * Joins two networks as those of two machines: what runs in `other` is reached at `otherAddress` from the one that is returned,
 * and nobody reaches the other's loopback. It is taken down when the test ends.
 */
export async function addMachineBeside(other: NetworkNamespace): Promise<NetworkNamespace> {
  const here = await addNetworkNamespace(`${inject('e2e').prefix}here${other.name.slice(-6)}`)
  onTestFinished(() => here.remove())
  await run('ip', ['link', 'add', 'cable', 'netns', other.name, 'type', 'veth', 'peer', 'cable', 'netns', here.name])
  for (const [{ enter }, address] of [
    [other, `${otherAddress}/30`],
    [here, '10.201.0.2/30'],
  ] as const) {
    const [file, ...args] = enter(['sh', '-c', `ip address add ${address} dev cable && ip link set cable up`])
    await run(file!, args)
  }
  return here
}
