import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { DoctorReport } from '../../src/admin/activity.ts'
import { createDeferred } from '../../src/lib/async.ts'
import { parse, startSession } from '../support/dashboard.ts'
import { expectError } from '../support/expect-content.ts'
import { get } from '../support/get.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'

const report: DoctorReport = {
  at: '2026-01-01T00:00:00.000Z',
  durationMs: 120,
  counts: { ok: 1, warn: 0, fail: 1, skipped: 0 },
  results: [
    { id: 'mirror.running', group: 'mirror', state: 'ok', saw: 'mirror is running.' },
    {
      id: 'clients.docker.reload',
      group: 'clients',
      subject: 'docker',
      state: 'fail',
      saw: 'dockerd has not read its configuration.',
      fix: { command: 'mirror configure docker --reload', isOwn: false },
      advice: 'Or restart dockerd.',
    },
  ],
}

async function put(mirror: TestMirror, body: unknown, headers: Record<string, string> = {}) {
  const token = (await readFile(mirror.paths.tokenFile, 'utf8')).trim()
  return get(mirror.adminUrl, '/api/doctor', {
    method: 'PUT',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
}

const read = async (mirror: TestMirror) => parse(await get(mirror.adminUrl, '/api/doctor'))

describe('the findings of mirror doctor', () => {
  test('are kept until others replace them, without what is no part of a report', async () => {
    const mirror = await startTestMirror()
    expect(await read(mirror)).toEqual({ canRun: false })
    expect((await put(mirror, { ...report, extra: 1, counts: { ok: 99 } })).status).toBe(200)
    expect(await read(mirror)).toEqual({ canRun: false, report })
    const saw = `dock\u001b[2Jer${'x'.repeat(5000)}`
    await put(mirror, { ...report, results: [{ ...report.results[0], saw, other: { deep: [1] } }] })
    const { report: next } = (await read(mirror)) as { report: DoctorReport }
    expect(next.results).toEqual([{ ...report.results[0], saw: expect.stringMatching(/^dock \[2Jerx+$/) }])
    expect(next.results[0]!.saw.length).toBe(2000)
  })

  test('stay after a restart, also those of the mirror itself; a damaged file is none', async () => {
    const first = await startTestMirror()
    await put(first, report)
    await first.close()
    const second = await startTestMirror({ home: first.home, runDoctor: async () => ({ ...report, durationMs: 7 }) })
    expect(await read(second)).toEqual({ canRun: true, report })
    const { headers } = await startSession(second)
    await get(second.adminUrl, '/api/doctor/run', { method: 'POST', headers, body: '{}' })
    await second.close()
    const third = await startTestMirror({ home: first.home })
    expect(await read(third)).toEqual({ canRun: false, report: { ...report, durationMs: 7 } })
    await third.close()
    for (const text of ['{"at":', '{"at":"yesterday"}']) {
      await writeFile(join(third.paths.stateDir, 'doctor.json'), text)
      const mirror = await startTestMirror({ home: first.home })
      expect(await read(mirror)).toEqual({ canRun: false })
      await mirror.close()
    }
  })

  test.each([
    ['an empty object', {}],
    ['no time', { ...report, at: 'yesterday' }],
    ['no duration', { ...report, durationMs: -1 }],
    ['no list', { ...report, results: {} }],
    ['an unknown state', { ...report, results: [{ ...report.results[0], state: 'bad' }] }],
    ['an unknown group', { ...report, results: [{ ...report.results[0], group: '__proto__' }] }],
    ['a result without text', { ...report, results: [{ ...report.results[0], saw: 1 }] }],
    ['too many results', { ...report, results: Array.from({ length: 1001 }, () => report.results[0]) }],
  ])('are refused with %s', async (_, body) => {
    const mirror = await startTestMirror()
    expectError(await put(mirror, body), 400)
    expect(await read(mirror)).toEqual({ canRun: false })
  })

  test('are refused beyond 256 KiB, and without the token', async () => {
    const mirror = await startTestMirror()
    expectError(await put(mirror, `{"at":"${'x'.repeat(256 * 1024)}"}`), 413)
    expectError(await put(mirror, report, { authorization: 'Bearer wrong' }), 401)
    const { headers } = await startSession(mirror)
    expectError(
      await get(mirror.adminUrl, '/api/doctor', { method: 'PUT', headers, body: JSON.stringify(report) }),
      403,
    )
  })

  test('are found by the mirror itself where it can, once for all pages that ask', async () => {
    const ended = createDeferred()
    let runs = 0
    const mirror = await startTestMirror({
      async runDoctor() {
        runs += 1
        await ended.promise
        return report
      },
    })
    const { headers } = await startSession(mirror)
    const ask = () => get(mirror.adminUrl, '/api/doctor/run', { method: 'POST', headers, body: '{}' })
    const asked = [ask(), ask()]
    await expect.poll(() => runs).toBe(1)
    expect(await read(mirror)).toEqual({ canRun: true })
    ended.resolve()
    for (const answer of await Promise.all(asked)) expect(parse(answer)).toEqual(report)
    expect(await read(mirror)).toEqual({ canRun: true, report })
    expect(runs).toBe(1)
    await ask()
    expect(runs).toBe(2)
  })

  test('cannot be asked of a mirror in a container, which says what to run', async () => {
    const mirror = await startTestMirror()
    const answer = await mirror.post('/api/doctor/run', {})
    expectError(answer, 409)
    expect(answer.body.toString()).toContain('mirror doctor')
  })
})
