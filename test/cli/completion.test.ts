import { execFile } from 'node:child_process'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createNameSource } from '../../src/cli/completion-names.ts'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { prepareCompletion, typeInShell } from '../support/complete-in-shell.ts'
import { temporaryHome } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { whyNoTerminal } from '../support/terminal.ts'

const names = {
  cached: ['docker.io/library/alpine:3.20', 'ghcr.io/owner/app:1'],
  pushed: ['team/tool:old-1', 'registry/app:1'],
}

describe.skipIf(whyNoTerminal() !== undefined)('the completion in a real bash', () => {
  test.each([
    ['mirror registry rm team/t\t', ['registry', 'rm', 'team/tool:old-1']],
    // The colon breaks words for readline.
    ['mirror registry rm team/tool:\t', ['registry', 'rm', 'team/tool:old-1']],
    ['mirror cache rm alpine:3\t --dry\t', ['cache', 'rm', 'alpine:3.20', '--dry-run']],
    ['mirror configure --scope=u\t', ['configure', '--scope=user']],
    ['mirror regi\t g\t', ['registry', 'gc']],
    ["mirror registry rm 'team/tool:o\t", ['registry', 'rm', 'team/tool:old-1']],
    ['mirror configure --file "a \t', ['configure', '--file', 'a file.yaml']],
    ['mirror cache rm "$(touch evil)" ghcr.io/o\t', ['cache', 'rm', '', 'ghcr.io/owner/app:1']],
  ])('of %j gives the words %j', async (line, expected) => {
    const machine = await prepareCompletion(names)
    await writeFile(join(machine.home, 'a file.yaml'), '')
    expect(await typeInShell('bash', machine, line)).toEqual(expected)
  })

  test('runs nothing of the line while it completes', async () => {
    const machine = await prepareCompletion(names)
    // Ctrl-U removes the line before it runs.
    const line = 'mirror cache rm "$(touch evil)" `touch evil` ghcr.io/o\t\u0015mirror done'
    expect(await typeInShell('bash', machine, line)).toEqual(['done'])
    await expect(stat(join(machine.home, 'evil'))).rejects.toThrow('ENOENT')
  })
})

describe('the names for the completion', () => {
  const surroundings = (home: string) => ({
    platform: process.platform,
    env: { MIRROR_HOME: home },
    homedir: homedir(),
    cwd: home,
  })
  const setState = (home: string, admin: string) =>
    writeFile(join(home, 'state', 'mirror.json'), JSON.stringify({ endpoints: { admin: [admin] } }))

  test('come from the running mirror, and from its last answer when it is stopped', async () => {
    const { mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const source = createNameSource(surroundings(mirror.home))
    expect(await source.cached()).toEqual([])
    await writeFile(mirror.paths.stateFile, JSON.stringify({ endpoints: { admin: [mirror.adminUrl] } }))
    await expect.poll(() => source.cached()).toEqual(['docker.io/library/app:v1'])
    await mirror.close()
    expect(await source.cached()).toEqual(['docker.io/library/app:v1'])
    const kept = join(mirror.paths.stateDir, 'completion.json')
    expect((await stat(kept)).mode & 0o777).toBe(0o600)
  })

  test.each(['silent', 'wrong'])('do not wait for a mirror that is %s', async (kind) => {
    const { home } = await prepareCompletion(names)
    const server = createServer((_, response) => (kind === 'wrong' ? response.end('<html>') : undefined))
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => {
      server.close()
      server.closeAllConnections()
    })
    await setState(home, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
    const begun = performance.now()
    expect(await createNameSource(surroundings(home)).pushed()).toEqual(names.pushed)
    expect(performance.now() - begun).toBeLessThan(1000)
  })

  test('wait less for a mirror that was silent a moment ago, and ask it again', async () => {
    const { home } = await prepareCompletion(names)
    let isSilent = true
    const server = createServer((_, response) => {
      if (!isSilent) response.end(JSON.stringify([{ name: 'team/new:1' }]))
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => {
      server.close()
      server.closeAllConnections()
    })
    await setState(home, `http://127.0.0.1:${(server.address() as AddressInfo).port}`)
    const find = async () => {
      const begun = performance.now()
      const found = await createNameSource(surroundings(home)).pushed()
      return { found, ms: performance.now() - begun }
    }
    const [first, second] = [await find(), await find()]
    expect([first.found, second.found]).toEqual([names.pushed, names.pushed])
    // A timer ends no earlier than it says.
    expect(first.ms).toBeGreaterThanOrEqual(79)
    expect(second.ms).toBeLessThan(first.ms)
    isSilent = false
    await expect.poll(async () => (await find()).found).toEqual(['team/new:1'])
  })

  test.each(['http://192.0.2.1:80', 'https://127.0.0.1:1', 'file:///etc/passwd', 'no url'])(
    'are asked of no other machine: %s',
    async (admin) => {
      const { home } = await prepareCompletion(names)
      await setState(home, admin)
      expect(await createNameSource(surroundings(home)).cached()).toEqual(names.cached)
    },
  )

  test('are none without a mirror, and the upstreams of the running one come first', async () => {
    const home = await temporaryHome()
    const source = createNameSource(surroundings(home))
    expect([await source.cached(), await source.pushed()]).toEqual([[], []])
    expect(await source.upstreams()).toContain('docker.io')
    const machine = await prepareCompletion({})
    const served = { config: { upstreams: { 'registry.corp.example': {} } } }
    const endpoints = { registry: ['http://127.0.0.1:5001'] }
    expect(source.registries()).toEqual([])
    await writeFile(join(machine.home, 'state', 'mirror.json'), JSON.stringify({ served, endpoints }))
    expect(createNameSource(surroundings(machine.home)).registries()).toEqual(['localhost:5001', '127.0.0.1:5001'])
    expect((await createNameSource(surroundings(machine.home)).upstreams())[0]).toBe('registry.corp.example')
  })
})

test('the completion loads one small file: no command, and no shared code of the program', async () => {
  const text = await readFile(join(findPackageRoot(), 'dist', 'cli', 'complete.cjs'), 'utf8')
  expect(text.length).toBeLessThan(40_000)
  expect(text).not.toMatch(/chunks\/|oclif\/core|require\("(?!node:)|\bimport\(/)
})

test('the completion of commands and flags loads no streams and no HTTP: they take longer than all the rest', async () => {
  const machine = await prepareCompletion(names)
  const reporter = join(machine.home, 'reporter.cjs')
  await writeFile(
    reporter,
    `process.on('exit', () => require('node:fs').writeFileSync(process.env.LOADED, process.moduleLoadList.join('\\n')))`,
  )
  await writeFile(join(machine.home, 'empty.cjs'), '')
  const run = promisify(execFile)
  const list = async (...args: string[]) => {
    const env = { ...machine.env, LOADED: join(machine.home, 'loaded') }
    const { stdout } = await run(process.execPath, ['--require', reporter, ...args], { env, cwd: machine.home })
    return { stdout, loaded: new Set((await readFile(env.LOADED, 'utf8')).split('\n')) }
  }
  const empty = await list('empty.cjs')
  const program = join(findPackageRoot(), 'bin', 'run.js')
  const { stdout, loaded } = await list(program, '__complete', 'bash', '--line=mirror trace --fo')
  expect(stdout).toBe('--follow\n')
  const added = [...loaded].filter((name) => !empty.loaded.has(name))
  expect(added).not.toEqual([])
  expect(added.filter((name) => /\b(stream|streams|http|net|undici)\b/.test(name))).toEqual([])
})
