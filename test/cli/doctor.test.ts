import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { homedir, tmpdir } from 'node:os'
import { mkdtemp } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { DoctorReport } from '../../src/admin/activity.ts'
import { renderChecks, renderDoctor } from '../../src/cli/render/doctor.ts'
import { createColors } from '../../src/cli/terminal.ts'
import { checks } from '../../src/doctor/checks.ts'
import { commandEnv } from '../support/command-env.ts'
import { program } from '../support/mirror-process.ts'

/** Creates a home that also root accepts. */
async function createHome(): Promise<string> {
  const home = await mkdtemp(join(process.getuid?.() === 0 ? homedir() : tmpdir(), 'mirror-doctor-'))
  onTestFinished(() => rm(home, { recursive: true, force: true }))
  return home
}

const run = (home: string, ...args: string[]) => runWith({}, home, ...args)

async function runWith(variables: Record<string, string>, home: string, ...args: string[]) {
  const env = { ...commandEnv(home), LC_ALL: 'C.UTF-8', ...variables }
  const child = spawn(process.execPath, [program, ...args], { cwd: home, env, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number]
  return { exit, stdout, stderr }
}

describe('mirror doctor', () => {
  test('fails with code 5 and the command that starts a stopped mirror', async () => {
    const { exit, stdout } = await run(await createHome(), 'doctor', '--only', 'mirror')
    expect(exit).toBe(5)
    expect(stdout).toContain('  ✖ mirror is not running.\n    → mirror up\n')
    expect(stdout).not.toContain('✔')
  })

  test('prints one report as JSON, with the counts of its results', async () => {
    const { exit, stdout } = await run(await createHome(), 'doctor', '--only', 'mirror', '--json')
    const report = JSON.parse(stdout) as DoctorReport
    expect(exit).toBe(5)
    expect(report.results.filter(({ state }) => state === 'fail')).toHaveLength(report.counts.fail)
    expect(report.results.every(({ id, group }) => id.startsWith(`${group}.`))).toBe(true)
  })

  test('says in one line that all is well, and lists the checks with --verbose', async () => {
    const home = await createHome()
    const quiet = await run(home, 'doctor', '--only', 'mirror.config', '--only', 'mirror.ports')
    expect(quiet).toMatchObject({ exit: 0, stdout: 'Everything is well: 2 checks.\n' })
    const verbose = await run(home, 'doctor', '--only', 'mirror.config,mirror.ports', '--verbose')
    expect(verbose.stdout.match(/✔/g)).toHaveLength(2)
  })

  test('refuses unknown checks and clients with code 2 and a suggestion', async () => {
    const home = await createHome()
    const check = await run(home, 'doctor', '--only', 'mirror.rums')
    expect(check).toMatchObject({ exit: 2, stderr: expect.stringContaining('Did you mean mirror.runs?') })
    const client = await run(home, 'doctor', 'dokcer')
    expect(client).toMatchObject({ exit: 2, stderr: expect.stringContaining('Did you mean docker?') })
  })

  test('runs nothing with --fix where nobody agrees, and says so with code 2', async () => {
    const { exit, stdout, stderr } = await run(await createHome(), 'doctor', '--only', 'mirror', '--fix')
    expect(exit).toBe(2)
    expect(stdout).toContain('→ mirror up')
    expect(stderr).toContain('--yes')
  })

  test('shows with --fix --dry-run which commands it would run, and runs none', async () => {
    const home = await createHome()
    const { exit, stdout, stderr } = await run(home, 'doctor', '--only', 'mirror.runs', '--fix', '--dry-run')
    expect({ exit, stderr }).toEqual({ exit: 5, stderr: expect.stringContaining('Would run:\n  mirror up\n') })
    expect(stdout.match(/→ mirror up\n/g), 'the report is printed once').toHaveLength(1)
    expect(await run(home, 'status')).toMatchObject({ exit: 3 })
  })

  test('starts a stopped mirror with --fix --yes, and names what is mended', async () => {
    const home = await createHome()
    onTestFinished(async () => void (await run(home, 'down')))
    const { exit, stdout, stderr } = await run(home, 'doctor', '--only', 'mirror.runs', '--fix', '--yes')
    expect(stderr).toContain('Running: mirror up\n')
    expect(stderr).toContain('Mended: mirror.runs\n')
    expect(stdout).toContain('Everything is well: 1 check.')
    expect(exit).toBe(0)
    expect(await run(home, 'status')).toMatchObject({ exit: 0 })
  })

  test('does not wait for a program that hangs, and names the check that got no answer', async () => {
    const home = await createHome()
    await mkdir(join(home, 'bin'))
    await writeFile(join(home, 'bin', 'podman'), '#!/bin/sh\nexec sleep 60\n', { mode: 0o755 })
    const PATH = `${join(home, 'bin')}:${process.env['PATH']}`
    const begin = performance.now()
    const { stdout } = await runWith({ PATH }, home, 'doctor', 'podman', '--only', 'clients')
    // Allow far more than the four seconds, because a busy machine starts programs slowly.
    expect(performance.now() - begin).toBeLessThan(30_000)
    expect(stdout).toContain('clients.configured: podman: the check did not end within 4 s')
    expect(stdout).toContain('1 check had no time, so nobody knows: mirror doctor --timeout 20s')
    expect(stdout).not.toContain('Everything is well')
    const short = await runWith({ PATH }, home, 'doctor', 'podman', '--only', 'clients', '--timeout', '100ms')
    expect(short.stdout).toContain('the check did not end within 0.1 s')
  })

  test('keeps the report of all checks in the dashboard when a later run is limited to some', async () => {
    const home = await createHome()
    onTestFinished(async () => void (await run(home, 'down')))
    // Ask no server outside of the tests.
    await writeFile(join(home, 'mirror.yaml'), 'cache: {offline: true}\n')
    expect(await run(home, 'up')).toMatchObject({ exit: 0 })
    const { endpoints } = JSON.parse((await run(home, 'status', '--json')).stdout) as { endpoints: { admin: string[] } }
    const stored = async () => (await fetch(`${endpoints.admin[0]}/api/doctor`)).text()
    const before = await stored()
    await run(home, 'doctor', '--only', 'mirror')
    await run(home, 'doctor', 'k3d')
    expect(await stored()).toBe(before)
    await runWith({ PATH: '/var/empty' }, home, 'doctor')
    expect(await stored()).toContain('mirror.runs')
  })

  test('its help has no line break within a sentence', async () => {
    const { stdout } = await runWith({ COLUMNS: '300' }, await createHome(), 'doctor', '--help')
    expect(stdout.replaceAll(/\s+/g, ' ')).toContain('names one command for each finding.')
    const { default: Doctor } = await import('../../src/commands/doctor.ts')
    expect(Doctor.description).not.toContain('\n')
  })

  test('--list-checks lists each check, as docs/doctor.md does', async () => {
    const home = await createHome()
    const { stdout } = await run(home, 'doctor', '--list-checks', '--json')
    expect(JSON.parse(stdout)).toEqual(checks)
    const table = await run(home, 'doctor', '--list-checks')
    expect(checks.filter(({ id, what }) => !table.stdout.includes(id) || !table.stdout.includes(what))).toEqual([])
    const page = await readFile(new URL('../../docs/doctor.md', import.meta.url), 'utf8')
    const rows = page.split('\n').filter((line) => line.startsWith('| `'))
    expect(rows).toEqual(checks.map(({ id, what }) => `| \`${id}\` | ${what} |`))
  })

  test('a removed file of mirror is found, with the command that writes it again', async () => {
    const home = await createHome()
    onTestFinished(async () => void (await run(home, 'down')))
    await writeFile(join(home, 'mirror.yaml'), '')
    expect(await run(home, 'up')).toMatchObject({ exit: 0 })
    const file = join(home, 'state', 'k3d', 'k3s-default', 'registries.yaml')
    const mirror = (JSON.parse((await run(home, 'status', '--json')).stdout) as { endpoints: { cache: string[] } })
      .endpoints
    const configured = await run(home, 'configure', 'k3d', '--yes', '--mirror', mirror.cache[0]!)
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    // A cluster is in a network of its own, where the loopback address of this machine leads nowhere.
    const loopback = await run(home, 'doctor', 'k3d', '--only', 'clients.loopback', '--json')
    expect(JSON.parse(loopback.stdout)).toMatchObject({
      results: [{ id: 'clients.loopback', state: 'fail', fix: { command: 'mirror configure k3d' } }],
    })
    await rm(file)
    const found = await run(home, 'doctor', 'k3d', '--only', 'clients.files', '--json')
    expect(JSON.parse(found.stdout)).toMatchObject({
      results: [{ id: 'clients.files', state: 'fail', fix: { command: 'mirror configure k3d', isOwn: true } }],
    })
  })
})

const report: DoctorReport = {
  at: '2026-11-30T12:00:00.000Z',
  durationMs: 12,
  counts: { ok: 1, warn: 1, fail: 1, skipped: 1 },
  results: [
    { id: 'mirror.runs', group: 'mirror', state: 'ok', saw: 'mirror 0.1.0 runs (pid 12).' },
    {
      id: 'clients.hosts.capability',
      group: 'clients',
      subject: 'kind, dev-control-plane',
      state: 'fail',
      saw: '/dev-control-plane/etc/containerd/certs.d/_default/hosts.toml names the capability "referrers", which containerd 1.7 does not know.\x1b[31m',
      fix: { command: 'mirror configure kind --cluster dev', isOwn: true },
    },
    { id: 'use.seen', group: 'use', state: 'warn', saw: 'podman has not used the mirror.', advice: 'Run it once.' },
    { id: 'use.hosts', group: 'use', state: 'skipped', saw: 'mirror is not running' },
  ],
}
const plain = { colors: createColors(false), verbose: true, unicode: true }

describe('the report', () => {
  test.each([60, 200])('fits %i columns, and keeps each command on a line of its own', (columns) => {
    const text = renderDoctor(report, { ...plain, columns })
    const tooLong = text
      .split('\n')
      .filter((line) => line.length > columns && line.includes(' ') && !/\/\S+$/.test(line))
    expect(tooLong).toEqual([])
    expect(text).toContain('    → mirror configure kind --cluster dev\n')
  })

  test('shows no control characters of files, and only ASCII where a terminal shows no more', () => {
    const text = renderDoctor(report, { ...plain, columns: 100, unicode: false })
    expect(text).toMatch(/^[\x20-\x7e\n]*$/)
    expect(text).toContain('    -> mirror configure kind --cluster dev\n')
  })

  const render = (results: DoctorReport['results'], more: object = {}) => {
    const counts = { ok: 0, warn: 0, fail: 0, skipped: 0 }
    for (const { state } of results) counts[state]++
    return renderDoctor({ ...report, counts, results }, { ...plain, verbose: false, columns: 200, ...more })
  }
  const skipped = {
    id: 'clients.configured',
    group: 'clients',
    subject: 'k3s',
    state: 'skipped',
    saw: 'k3s is not installed on this machine',
  } as const

  test('does not say that all is well when nothing could be checked, and says why', () => {
    const text = render([skipped])
    expect(text).toContain('clients.configured: k3s is not installed on this machine')
    expect(text).toMatch(/\nNothing could be checked: 1 skipped\.$/)
  })

  test('shows the skipped checks of clients that the user named', () => {
    const results = [report.results[0]!, skipped]
    expect(render(results)).toBe('Everything is well: 2 checks, 1 skipped.')
    expect(render(results, { areClientsNamed: true })).toContain('k3s is not installed')
  })

  const subjects: readonly [name: string, subject: string, saw: string, shown: string][] = [
    ['has it', 'docker', 'docker is not configured.', '✖ docker is not configured.'],
    ['has it in a longer word only', 'docker', 'dockerd has read nothing.', '✖ docker: dockerd has read nothing.'],
    ['has one of its parts', 'docker, system', 'docker fails.', '✖ docker, system: docker fails.'],
    ['has all of its parts', 'docker, /a/b.json', 'docker reads /a/b.json twice.', '✖ docker reads /a/b.json twice.'],
    ['has the path of it', 'docker, system, /a/b.json', '/a/b.json fails.', '✖ docker, system: /a/b.json fails.'],
    ['has it in a longer name', 'kind', 'kind-dev fails.', '✖ kind: kind-dev fails.'],
  ]

  test.for(subjects)('names the subject unless the sentence does: a sentence that %s', ([, subject, saw, shown]) => {
    expect(render([{ id: 'use.seen', group: 'use', state: 'fail', subject, saw }])).toContain(`  ${shown}\n`)
  })

  test('of the ids has each sentence below its id in a narrow terminal', () => {
    const text = renderChecks(checks, createColors(false), 60)
    expect(text).toContain('mirror.runs\n  The mirror runs and answers.\n')
    expect(text).not.toContain('when all is well')
    expect(text.split('\n').filter((line) => line.length > 60)).toEqual([])
  })
})
