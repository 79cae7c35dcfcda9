import { describe, expect, test } from 'vitest'
import { createColors } from '../../../src/cli/terminal.ts'
import { renderCheck, renderConfigured } from '../../../src/cli/render/configure.ts'

const plain = createColors(false)

describe('the list of configured clients', () => {
  const listed = (files: readonly { path: string; state: 'as written' | 'gone' }[]) =>
    renderConfigured(
      [
        {
          client: 'docker',
          place: 'system',
          title: 'system',
          mirror: 'http://m',
          since: '2026-01-01T00:00:00Z',
          files,
        },
      ],
      undefined,
      plain,
    )
  const hosts = (name: string, state: 'as written' | 'gone' = 'as written') => ({
    path: `/etc/docker/certs.d/${name}/hosts.toml`,
    state,
  })

  test('joins many files of one state into one line, and names each file of another state', () => {
    const daemonJson = { path: '/etc/docker/daemon.json', state: 'as written' as const }
    const table = listed([daemonJson, hosts('a.io'), hosts('b.io'), hosts('c.io'), hosts('d.io', 'gone')])
    expect(table.split('\n')).toHaveLength(4)
    expect(table).toContain('/etc/docker/daemon.json')
    expect(table).toContain('/etc/docker/certs.d/*/hosts.toml (3 files)')
    expect(table).toMatch(/d\.io\/hosts\.toml +gone/)
    expect(listed([hosts('a.io'), hosts('b.io')])).toContain('b.io')
  })
})

test('the list of configured clients has a paragraph for each client where the table is too wide', () => {
  const clients = ['docker', 'podman'].map((client) => ({
    client,
    place: 'system',
    title: `system (/etc/${client})`,
    mirror: 'http://127.0.0.1:5055',
    since: '2026-01-01T00:00:00Z',
    files: [{ path: `/etc/${client}/a-file-with-a-long-name.conf`, state: 'as written' as const }],
  }))
  expect(renderConfigured(clients, undefined, plain, 60)).toBe(
    ['docker', 'podman']
      .map((client) =>
        [
          `${client}  system (/etc/${client})`,
          '  mirror  http://127.0.0.1:5055',
          '  since   2026-01-01 00:00 UTC',
          `  file    /etc/${client}/a-file-with-a-long-name.conf:`,
          '          as written',
        ].join('\n'),
      )
      .join('\n\n'),
  )
  expect(renderConfigured(clients, undefined, plain, 200)).toMatch(/^CLIENT +PLACE/)
})

describe('a check', () => {
  test('of a client that did not use the mirror shows what was observed and the likely causes', () => {
    const result = { seen: false, asked: false, failed: 'not found', image: 'docker.io/a/b:c' }
    const saw = ['docker info lists no mirror.']
    const reasons = [{ why: 'dockerd has not read it', fix: 'mirror configure docker --reload' }]
    expect(renderCheck('docker', { ...result, saw, reasons }, plain)).toBe(
      [
        'FAIL  docker did not contact the mirror for docker.io/a/b:c',
        '  not found',
        'Seen:',
        '  docker info lists no mirror.',
        'Likely cause:',
        '  1. dockerd has not read it',
        '     mirror configure docker --reload',
      ].join('\n'),
    )
    const seen = { ...result, seen: true, asked: true, failed: undefined, saw: [], reasons: [] }
    expect(renderCheck('docker', seen, plain)).toBe('ok    docker pulls through the mirror (docker.io/a/b:c)')
  })
})
