import { describe, expect, test } from 'vitest'
import { describeConfigured, findConfiguredFor } from '../../../src/stats/configured-clients.ts'

const since = '2026-11-30T12:00:00.000Z'
const configured = [
  { client: 'kind', title: 'the kind cluster dev', since },
  { client: 'docker', title: 'Docker', since },
  { client: 'kind', title: 'the kind cluster test', since },
  { client: 'kaniko', title: 'a file', since },
]

describe('the configured clients', () => {
  test.each([
    ['containerd', ['docker', 'kind']],
    ['Docker', ['docker']],
    ['buildkit', ['docker']],
    ['curl', []],
    ['constructor', []],
  ])('that %s may be', (product, names) => {
    expect(findConfiguredFor({ product }, configured)).toEqual(names)
  })

  test('have the time of their last use, but not one before they were configured', () => {
    const seen = [
      { product: 'docker', lastSeen: '2026-11-30T11:00:00.000Z' },
      { product: 'containerd', lastSeen: '2026-11-30T13:00:00.000Z' },
      { product: 'containerd', lastSeen: '2026-11-30T14:00:00.000Z' },
    ]
    const [kind, , , kaniko] = describeConfigured(configured, seen)
    expect(kind).toEqual({ client: 'kind', title: 'the kind cluster dev', since, lastSeen: '2026-11-30T14:00:00.000Z' })
    expect(kaniko).toEqual({ client: 'kaniko', title: 'a file', since })
    expect(describeConfigured(configured.slice(1, 2), seen.slice(0, 1))).toEqual([configured[1]])
  })
})
