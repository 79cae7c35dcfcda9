import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createAutostart, renderLaunchAgent, renderSystemdUnit } from '../../../src/daemon/autostart.ts'
import type { RunCommand } from '../../../src/lib/process.ts'

const templates = fileURLToPath(new URL('../../../templates', import.meta.url))
const spec = {
  command: ['/opt/a b/node', '/srv/100%/run.js', 'serve'],
  env: { MIRROR_HOME: '/home/$me/"x"', PATH: '/bin:/usr/bin' },
  logFile: '/var/log/<me>/50%.log',
}

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-autostart-'))
})
afterEach(() => rm(home, { recursive: true }))

function autostart(platform: NodeJS.Platform, answers: Record<string, number | undefined>) {
  const run: string[] = []
  const runCommand: RunCommand = async (file, args) => {
    const line = [file, ...args].join(' ')
    run.push(line)
    const exitCode = Object.hasOwn(answers, line) ? answers[line] : 0
    return exitCode === undefined ? undefined : { exitCode, stdout: '', stderr: 'no bus' }
  }
  return { run, ...createAutostart({ platform, env: {}, homedir: home, templates, runCommand }) }
}

describe('a systemd unit', () => {
  test('quotes characters that systemd would interpret', async () => {
    const unit = renderSystemdUnit(await readFile(join(templates, 'systemd/mirror.service'), 'utf8'), spec)
    const lines = unit.split('\n')
    expect(lines).toContain('ExecStart="/opt/a b/node" "/srv/100%%/run.js" "serve"')
    expect(lines).toContain(String.raw`Environment="MIRROR_HOME=/home/$me/\"x\""`)
    expect(lines).toContain('StandardError=append:/var/log/<me>/50%%.log')
    expect(unit).not.toMatch(/@[A-Z]+@/)
    // Checks that each line is a section, a comment, an assignment or empty.
    for (const line of lines) expect(line).toMatch(/^(?:\[\w+\]|#.*|\w+=.+|)$/)
  })

  test('is installed for the next start, and removed again', async () => {
    const { run, file, check, install, remove } = autostart('linux', {})
    await check()
    expect(await install(spec)).toEqual([])
    expect(file).toBe(join(home, '.config/systemd/user/mirror.service'))
    expect((await stat(file)).mode & 0o777).toBe(0o600)
    expect(run).toContain('systemctl --user enable mirror.service')
    expect(await remove()).toBe(true)
    expect(run).toContain('systemctl --user disable mirror.service')
    await expect(stat(file)).rejects.toMatchObject({ code: 'ENOENT' })
    expect(await remove()).toBe(false)
  })

  test('names the command for lingering when this user may not enable it', async () => {
    const { install } = autostart('linux', { 'loginctl enable-linger': 1 })
    expect((await install(spec)).join()).toContain('loginctl enable-linger')
  })

  test.each([undefined, 1])('is refused with exit code 4 without a user session (%s)', async (exitCode) => {
    const { check, file } = autostart('linux', { 'systemctl --user show-environment': exitCode })
    await expect(check()).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
    await expect(stat(file)).rejects.toMatchObject({ code: 'ENOENT' })
  })
})

const hasSystemd = spawnSync('systemd-analyze', ['--version']).status === 0

test.skipIf(!hasSystemd)('systemd itself finds nothing wrong with a unit, whatever its values hold', async () => {
  const values = [
    'a b',
    '100%h',
    '$HOME ${HOME}',
    '"x" \'y\'',
    'back\\slash\\',
    'line\nline',
    'tab\ttab',
    'naïve',
    '#;',
    '{"a":["b"]}',
  ]
  const env = Object.fromEntries(values.map((value, at) => [`VALUE_${at}`, value]))
  const command = [process.execPath, '--max-semi-space-size=8', '/srv/$100%/"run".js', 'serve']
  const template = await readFile(join(templates, 'systemd/mirror.service'), 'utf8')
  const file = join(home, 'mirror.service')
  await writeFile(file, renderSystemdUnit(template, { command, env, logFile: '/var/log/a b/50%.log' }))
  const verified = spawnSync('systemd-analyze', ['--user', 'verify', file], {
    env: { ...process.env, XDG_RUNTIME_DIR: home },
    encoding: 'utf8',
  })
  expect(verified.stderr.split('\n').filter((line) => line.includes('mirror.service'))).toEqual([])
  expect(verified.status).toBe(0)
})

describe('a launchd agent', () => {
  test('holds the command, the environment and the log as XML text', async () => {
    const agent = renderLaunchAgent(await readFile(join(templates, 'launchd/dev-mirror.plist'), 'utf8'), spec)
    const strings = [...agent.matchAll(/<(?:string|key)>(.*?)<\/(?:string|key)>/g)].map((match) => match[1])
    expect(strings).toEqual(
      expect.arrayContaining(['/opt/a b/node', '/srv/100%/run.js', 'serve', 'MIRROR_HOME', '/home/$me/&quot;x&quot;']),
    )
    expect(strings).toContain('/var/log/&lt;me&gt;/50%.log')
    expect(agent).not.toMatch(/@[A-Z]+@/)
    // Checks that all tags are closed, and that no comment has a double dash.
    const open: string[] = []
    for (const [, end, name, alone] of agent
      .replace(/<!--(?:(?!--)[^])*-->/, '')
      .matchAll(/<(\/?)([a-z]+)[^>?!]*?(\/?)>/g)) {
      if (end) expect(open.pop()).toBe(name)
      else if (!alone) open.push(name!)
    }
    expect(open).toEqual([])
  })

  test('is written to the folder that launchd reads at login', async () => {
    const { file, install, remove } = autostart('darwin', {})
    await install(spec)
    expect(file).toBe(join(home, 'Library/LaunchAgents/dev-mirror.plist'))
    expect(await remove()).toBe(true)
  })
})

test('autostart on any other platform is refused with exit code 4', () => {
  expect(() => autostart('win32', {})).toThrow(expect.objectContaining({ name: 'MirrorError', exit: 4 }))
})
