import { createHash } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { joinSentences, listClientTasks } from '../../../src/doctor/clients.ts'
import type { DoctorContext, Outcome } from '../../../src/doctor/context.ts'
import { machineWith } from '../../support/clients/machine-with.ts'

const cache = 'http://127.0.0.1:5055'
const written = `mirrors:\n  "*":\n    endpoint:\n      - ${cache}\n`
const header = '# Written by mirror. To take it back: mirror configure --undo\n'

/** Runs the check of the files of a k3s that mirror has configured. `before`: whether the file was there before. */
async function filesOf(text: string | undefined, before: boolean | 'by mirror') {
  const path = 'etc/rancher/k3s/registries.yaml'
  const { machine, home } = await machineWith(
    { 'k3s --version': 'k3s version v1.32.2+k3s1\n' },
    {
      'home/keep': '',
      backup: before === 'by mirror' ? `${header}${written}` : written,
      ...(text !== undefined && { [path]: text }),
    },
  )
  const file = `${home}/${path}`
  const record = {
    client: 'k3s',
    place: 'system',
    title: 'system',
    details: { scope: 'system' },
    since: '2026-11-30T12:00:00.000Z',
    cache,
    fallback: true,
    files: [
      {
        path: file,
        ...(before && { before: { backup: `${home}/backup`, mode: 0o600, uid: 0, gid: 0 } }),
        written: createHash('sha256').update(written).digest('hex'),
      },
    ],
    folders: [],
  }
  const records = await machineWith({}, { 'state/configured/k3s-0123456789abcdef.json': JSON.stringify(record) })
  const surroundings = { platform: 'linux', env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  const context: DoctorContext = {
    surroundings,
    machine: { ...machine, root: home, stateDir: records.machine.stateDir },
    paths: mirrorPaths(surroundings),
    version: '0.1.0',
    found: Promise.resolve(undefined),
    status: Promise.resolve(undefined),
    config: Promise.resolve(defaultConfig()),
    probeUpstreams: async () => [],
    clients: ['k3s'],
    pull: false,
    signal: new AbortController().signal,
    probeSignal: new AbortController().signal,
  }
  const outcomes: Outcome[] = []
  for (const task of await listClientTasks(context)) await task.run((one) => outcomes.push(one))
  return outcomes.filter(({ id }) => id === 'clients.files').map(({ state, fix }) => [state, fix?.isOwn])
}

describe('of the files that mirror wrote, the doctor finds', () => {
  test('nothing when they are as written', async () => {
    expect(await filesOf(written, true)).toEqual([['ok', undefined]])
  })

  test('nothing when the user has changed a file of the user and kept the mirror in it', async () => {
    expect(await filesOf(`${written}configs: {}\n`, true)).toEqual([['ok', undefined]])
  })

  test('a file of the user that no longer names the mirror, which --fix leaves alone', async () => {
    expect(await filesOf('configs: {}\n', true)).toEqual([['fail', false]])
  })

  test('a file of mirror that was changed, which --fix may write again', async () => {
    expect(await filesOf(`${header}configs: {}\n`, false)).toEqual([['warn', true]])
  })

  test('a file that is gone and that only mirror has written, of which a record has an earlier version', async () => {
    expect(await filesOf(undefined, 'by mirror')).toEqual([['fail', true]])
    expect(await filesOf(undefined, true)).toEqual([['fail', false]])
  })

  test('a file that is gone', async () => {
    expect(await filesOf(undefined, false)).toEqual([['fail', true]])
  })
})

test('the text about a pull has a full stop after each of its sentences', () => {
  const texts = [
    'The pull did not come through the mirror',
    undefined,
    'docker was not restarted',
    'It runs.',
    'Error\n',
  ]
  expect(joinSentences(texts)).toBe(
    'The pull did not come through the mirror. docker was not restarted. It runs. Error.',
  )
})
