import { expect, test } from 'vitest'
import { k3sAdapter } from '../../../src/clients/k3s/k3s.ts'
import { fails, machineWith, nothingSaid, type Answers } from '../../support/clients/machine-with.ts'

async function reloadWith(answers: Answers): Promise<string[]> {
  const { machine, asked: queries } = await machineWith(answers)
  const [target] = await k3sAdapter.findTargets(machine, nothingSaid)
  await target!.reload!.run()
  return queries.map(({ line }) => line).filter((line) => line.startsWith('systemctl restart'))
}

test.each(['k3s', 'k3s-agent'])(
  'a reload of k3s restarts %s, and ignores the unit that this node does not have',
  async (unit) => {
    const other = unit === 'k3s' ? 'k3s-agent' : 'k3s'
    const queries = await reloadWith({
      [`systemctl is-active --quiet ${other}.service`]: fails('inactive'),
      [`systemctl is-active --quiet ${unit}.service`]: '',
      [`systemctl restart ${unit}.service`]: '',
    })
    expect(queries).toEqual([`systemctl restart ${unit}.service`])
  },
)

test('an undo of k3s without a reload lists the steps that are left', async () => {
  const { machine } = await machineWith({})
  const [target] = await k3sAdapter.findTargets(machine, nothingSaid)
  expect(target!.listUndoSteps?.([])).toEqual([expect.stringContaining('systemctl restart k3s')])
})

test('a failed reload of k3s reports the error of systemctl, or that k3s does not run', async () => {
  const running = { 'systemctl is-active --quiet k3s.service': '' }
  await expect(reloadWith({ ...running, 'systemctl restart': fails('Access denied\n') })).rejects.toThrow(
    'Access denied',
  )
  await expect(reloadWith({ 'systemctl is-active': fails('') })).rejects.toThrow('does not run')
  await expect(reloadWith({})).rejects.toThrow('systemctl is not installed')
})
