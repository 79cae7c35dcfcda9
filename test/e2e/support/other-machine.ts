import { inject, onTestFinished } from 'vitest'
import { type NetworkNamespace, addNetworkNamespace } from './network-namespace.ts'
import { run } from './run.ts'

/** otherAddress is the address of a stage's other machine, as seen from this one. */
export const otherAddress = '10.201.0.1'

/**
 * Connects two networks like those of two machines until the test ends: the returned one reaches `other` at `otherAddress`, and
 * neither reaches the loopback of the other one.
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
