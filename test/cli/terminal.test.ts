import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { commandEnv } from '../support/command-env.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { installPackage, type InstalledPackage } from '../support/installed-package.ts'
import { runInTerminal, whyNoTerminal, type Screen, type TerminalOptions } from '../support/terminal.ts'
import { startUpstream } from '../support/upstream.ts'

const missing = whyNoTerminal()
if (missing !== undefined) console.warn(`The tests in a terminal are skipped: ${missing}.`)

const manifest = JSON.parse(await readFile(join(findPackageRoot(), 'oclif.manifest.json'), 'utf8')) as {
  commands: Record<string, { summary: string; flags: Record<string, object> }>
}
const commands = Object.keys(manifest.commands)
const topics = ['cache', 'credentials', 'registry']
const widths = [60, 80, 200]

describe.skipIf(missing !== undefined)('the packed program in a terminal', () => {
  let installed: InstalledPackage
  let home: string
  beforeAll(async () => {
    installed = await installPackage()
    home = await mkdtemp(join(tmpdir(), 'mirror-terminal-'))
  })
  afterAll(async () => {
    await installed.remove()
    await rm(home, { recursive: true })
  })

  function mirror(
    columns: number,
    args: readonly string[],
    more: Partial<TerminalOptions> & { before?: readonly string[] } = {},
  ): Promise<Screen> {
    const env = { ...commandEnv(home), ...more.env }
    return runInTerminal([...(more.before ?? []), installed.program, ...args], { columns, cwd: home, ...more, env })
  }

  /** Joins lines, because a terminal may wrap the text between any two words. */
  const unwrapped = (text: string) => text.replaceAll(/\s+/g, ' ')

  function expectHelp({ exit, raw, text }: Screen, columns: number) {
    expect(exit, text).toBe(0)
    expect(raw).toContain('\x1b[1mUSAGE\x1b[22m')
    for (const line of text.split('\n')) expect(line.length, line).toBeLessThanOrEqual(columns)
    expect(text).not.toMatch(/undefined|\[object|<%|\u00a0/)
  }

  test('shows `status --watch` on the alternate screen, and restores the terminal on Ctrl-C and on SIGTERM', async () => {
    const watch = ['status', '--watch']
    const stopped = await mirror(80, watch, { answers: [['mirror is not running', '\x03']] })
    expect(stopped.exit).toBe(130)
    const ended = await mirror(80, watch, { before: ['timeout', '--foreground', '5'] })
    for (const { raw } of [stopped, ended]) {
      expect(raw.startsWith('\x1b[?1049h')).toBe(true)
      expect(raw).toContain('mirror is not running')
      expect(raw.trimEnd().endsWith('\x1b[?25h\x1b[?1049l')).toBe(true)
      expect(raw).not.toContain('\x1b[2J')
    }
  })

  test.each([[[]], [['--help']], [['-h']], [['help']]])('lists its commands and topics for %j', async (args) => {
    const screen = await mirror(80, args)
    expectHelp(screen, 80)
    const top = [...commands.filter((id) => !id.includes(':')), ...topics]
    for (const name of top) expect(screen.text).toMatch(new RegExp(`^  ${name} {2}`, 'm'))
  })

  test('assumes 80 columns when the terminal reports no size', async () => {
    for (const args of [[], ['up', '--help']]) {
      const screen = await mirror(0, args)
      expectHelp(screen, 80)
      expect(screen).toEqual(await mirror(80, args))
    }
  })

  test.each([
    ['cache', 'ls'],
    ['configure', undefined],
    ['registry', undefined],
  ])('shows the same help for `%s %s` with --help, -h and `mirror help`', async (first, second) => {
    const words = second === undefined ? [first] : [first, second]
    const screen = await mirror(80, [...words, '--help'])
    expect(await mirror(80, [...words, '-h'])).toEqual(screen)
    expect(await mirror(80, ['help', ...words])).toEqual(screen)
  })

  test.each(['--version', '-v', 'version'])('prints the version for %s', async (argument) => {
    const { exit, text } = await mirror(80, [argument])
    expect({ exit, text }).toEqual({ exit: 0, text: expect.stringMatching(/^dev-mirror\/\d\S* \S+ node-v\S+\n$/) })
  })

  describe.each(widths)('at %i columns', (columns) => {
    test('shows the help of the program, and its version', async () => {
      expectHelp(await mirror(columns, []), columns)
      expect((await mirror(columns, ['--version'])).exit).toBe(0)
    })

    test.each(topics)('shows the help of the topic %s', async (topic) => {
      const screen = await mirror(columns, [topic])
      expectHelp(screen, columns)
      const inside = commands.filter((id) => id.startsWith(`${topic}:`))
      for (const id of inside) expect(unwrapped(screen.text)).toContain(manifest.commands[id]!.summary)
    })

    test.each(commands)('shows the help of %s', async (id) => {
      const screen = await mirror(columns, [...id.split(':'), '--help'])
      expectHelp(screen, columns)
      expect(unwrapped(screen.text)).toContain(manifest.commands[id]!.summary)
      for (const flag of Object.keys(manifest.commands[id]!.flags)) expect(screen.text).toContain(` --${flag}`)
    })

    test('reports an unknown command in colour, with a suggestion', async () => {
      const { exit, raw, text } = await mirror(columns, ['sttaus'])
      expect(exit).toBe(2)
      expect(raw).toContain('\x1b[31mmirror:\x1b[39m Unknown command')
      expect(text).toContain('Did you mean status?')
    })

    test('asks before it writes, and follows the answer', async () => {
      const root = await mkdtemp(join(home, 'root-'))
      const args = ['configure', 'docker', '--root', root, '--mirror', 'http://127.0.0.1:5055']
      const file = join(root, 'etc', 'docker', 'daemon.json')
      await mkdir(join(root, 'etc', 'docker'), { recursive: true })
      await writeFile(file, '{\n  "debug": true\n}\n')

      const refused = await mirror(columns, args, { answers: [['Write this?', 'n\r']] })
      expect(refused).toMatchObject({ exit: 0, text: expect.stringContaining('Nothing was written') })
      expect(await readFile(file, 'utf8')).not.toContain('5055')

      const agreed = await mirror(columns, args, { answers: [['Write this?', 'y\r']] })
      expect(agreed).toMatchObject({ exit: 0, text: expect.stringContaining('Configured docker') })
      for (const line of agreed.text.split('\n').filter((text) => !/^[-+@ ]|mirror configure/.test(text)))
        expect(line.length, line).toBeLessThanOrEqual(columns)
      // Expect the difference in colour.
      expect(agreed.raw).toContain('\x1b[32m+')
      expect(await readFile(file, 'utf8')).toContain('5055')
    })

    test('asks for the settings of mirror.yaml', async () => {
      const own = await mkdtemp(join(home, 'init-'))
      const answers = [
        ['How large', '5GiB\r'],
        ['Which port', '\r'],
        ['Additional registries', 'https://ghcr.io\r'],
        // The question stays open, and Ctrl-U clears the answer.
        ['Write the host alone', '\u0015quay.example\r'],
      ] as const
      const { exit, text } = await mirror(columns, ['init'], { answers, env: { MIRROR_HOME: own } })
      expect(exit, text).toBe(0)
      expect(await readFile(join(own, 'mirror.yaml'), 'utf8')).toContain('maxSize: 5GiB')
      expect(await readFile(join(own, 'mirror.yaml'), 'utf8')).toContain('quay.example')
      expect(unwrapped(text)).toContain(`Wrote the settings: ${join(own, 'mirror.yaml')}`)
    })

    test('ends a question on Ctrl-C with 130 and without a stack', async () => {
      const own = await mkdtemp(join(home, 'init-'))
      const answers = [['How large', '\u0003']] as const
      const { exit, text } = await mirror(columns, ['init'], { answers, env: { MIRROR_HOME: own } })
      expect(exit, text).toBe(130)
      expect(text).not.toMatch(/^\s+at /m)
    })

    test('shows tables and progress in colour, and without colour with NO_COLOR', async () => {
      const own = await mkdtemp(join(home, 'up-'))
      const env = { MIRROR_HOME: own }
      const image = makeImage({ layers: [100_000] })
      const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
      const upstreams = { 'docker.io': { url: upstream.url, credentials: 'anonymous' } }
      await writeFile(join(own, 'mirror.yaml'), JSON.stringify({ upstreams }))
      onTestFinished(async () => {
        expect(await mirror(columns, ['down'], { env })).toMatchObject({ exit: 0 })
      })
      const up = await mirror(columns, ['up'], { env })
      expect(up.exit, up.text).toBe(0)
      expect(up.raw).toContain('\x1b[32m●\x1b[39m')
      const [cache] = /http:\/\/127\.0\.0\.1:\d+/.exec(up.text)!
      for (const path of ['manifests/v1', `manifests/${image.digest}`, `blobs/${image.layers[0]}`])
        expect((await get(cache, `/v2/library/app/${path}?ns=docker.io`)).status).toBe(200)

      for (const args of [['status'], ['cache', 'ls']]) {
        const { exit, raw, text } = await mirror(columns, args, { env })
        expect(exit, text).toBe(0)
        expect(text).toMatch(/docker.*library\/app:v1/)
        expect(raw).toContain('\x1b[2mIMAGE ')
      }
      const bare = await mirror(columns, ['status'], { env: { ...env, NO_COLOR: '1' } })
      expect(bare.raw).toBe(bare.text)
      const verify = await mirror(columns, ['cache', 'verify'], { env })
      expect(verify.exit, verify.text).toBe(0)
      expect(verify.text).toMatch(/[█░]{24} \d+ %/)
      expect(verify.text).toContain('all intact')

      upstream.push('library/app', 'v2', makeImage({ seed: 2 }))
      expect((await get(cache, '/v2/library/app/manifests/v2?ns=docker.io')).status).toBe(200)
      const remove = (key: string) =>
        mirror(columns, ['cache', 'rm', 'app:v*'], { env, answers: [['Remove them?', key]] })
      const refused = await remove('n\r')
      expect(refused.text).toMatch(/Would remove: 2 images[^]*app:v1 +\S+ \S+[^]*app:v2 +\S+ \S+[^]*Nothing was done\./)
      const removed = await remove('y\r')
      expect(removed).toMatchObject({ exit: 0, text: expect.stringContaining('Removed: 2 images') as string })
    })
  })

  test('runs the demo to its end, in colour', async () => {
    const { exit, raw, text } = await mirror(80, ['demo'])
    expect(exit, text).toBe(0)
    expect(raw).toContain('\x1b[32m█')
  })

  test('still shows its help when DEBUG is set', async () => {
    const { exit, text } = await mirror(80, ['--help'], { env: { DEBUG: '*' } })
    expect(exit, text).toBe(0)
    expect(text).toContain('USAGE')
  })
})
