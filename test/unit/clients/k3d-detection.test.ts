import { describe, expect, test } from 'vitest'
import type { Machine } from '../../../src/clients/types.ts'
import { k3dAdapter } from '../../../src/clients/k3s/k3d.ts'

const nothing = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

/** Returns a machine with a cluster that keeps one ConfigMap. */
function machineWithCluster(context: string): Machine & { kept: string | undefined } {
  const machine = {
    platform: 'linux' as const,
    env: {},
    home: '/home/me',
    root: '/',
    detached: false,
    cwd: '/work',
    stateDir: '/state',
    kept: undefined as string | undefined,
    async runCommand(file: string, args: readonly string[], { input }: { input?: string }) {
      const [, name, verb] = args
      if (file !== 'kubectl' || name !== context)
        return { exitCode: 1, stdout: '', stderr: `error: context "${name}" does not exist\n` }
      if (verb === 'apply') machine.kept = input!.replace('metadata:\n', 'metadata:\n  creationTimestamp: null\n')
      if (verb === 'delete') machine.kept = undefined
      const stdout = args.includes('namespace') ? 'namespace/kube-public\n' : (machine.kept ?? '')
      return { exitCode: 0, stdout, stderr: '' }
    },
  }
  return machine
}

describe('k3d', () => {
  test('writes the ConfigMap of a running cluster, and undo removes it', async () => {
    const machine = machineWithCluster('k3d-dev')
    const [target] = await k3dAdapter.findTargets(machine, { ...nothing, cluster: 'dev' })
    expect(target).toMatchObject({ location: { network: 'k3d-dev' }, details: { cluster: 'dev', hosting: 'yes' } })
    const path = target!.inputs.files[1]!
    const text =
      'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: local-registry-hosting\n  namespace: kube-public\ndata: {}\n'
    expect(await target!.files.read(path)).toBeUndefined()
    await target!.files.write(path, Buffer.from(text), undefined)
    expect(Buffer.from((await target!.files.read(path))!.bytes).toString()).toBe(text)
    const again = k3dAdapter.restoreTarget(machine, target!.details)
    await again.files.remove(path)
    expect(machine.kept).toBeUndefined()
  })

  test('has no ConfigMap when kubectl does not reach the cluster', async () => {
    const [target] = await k3dAdapter.findTargets(machineWithCluster('other'), { ...nothing, cluster: 'dev' })
    expect(target).toMatchObject({ details: { cluster: 'dev' } })
    expect(target!.isOwn).toBe(true)
    expect(target!.inputs.files).toEqual(['/state/k3d/dev/registries.yaml', '/state/k3d/dev/ca/mirror-ca.crt'])
  })

  test('has nothing to undo in a cluster that was deleted', async () => {
    const target = k3dAdapter.restoreTarget(machineWithCluster('other'), { cluster: 'dev', hosting: 'yes' })
    expect(await target.files.read(target.inputs.files[1]!)).toBeUndefined()
  })
})
