import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { commandEnv } from '../support/command-env.ts'
import { get } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { program, startMirrorProcess } from '../support/mirror-process.ts'

async function run(home: string, args: string[], env: Record<string, string> = {}) {
  const child = spawn(process.execPath, [program, ...args], {
    env: { ...commandEnv(home), DISPLAY: '', WAYLAND_DISPLAY: '', SSH_CONNECTION: '', ...env },
    cwd: home,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number | null]
  return { exit, stdout, stderr }
}

/** Writes a program that takes the place of the browser: it records its arguments and ends with this code. */
async function makeBrowser(
  home: string,
  exit: number,
): Promise<{ env: Record<string, string>; read(): Promise<string> }> {
  const folder = join(home, 'bin')
  await mkdir(folder)
  const file = join(folder, 'xdg-open')
  await writeFile(file, `#!/bin/sh\nprintf '%s' "$*" > '${home}/opened'\nexit ${exit}\n`)
  await chmod(file, 0o755)
  const env = { DISPLAY: ':0', PATH: `${folder}${delimiter}${process.env['PATH']}` }
  return { env, read: () => readFile(join(home, 'opened'), 'utf8') }
}

function beginSession(adminUrl: string, link: string) {
  const [, ticket] = link.split('#ticket=')
  const headers = { origin: adminUrl, 'content-type': 'application/json' }
  return get(adminUrl, '/api/session', { method: 'POST', headers, body: JSON.stringify({ ticket }) })
}

/** Reads a stream of events until a text comes. */
async function readUntil({ body }: Response, wanted: string): Promise<void> {
  let text = ''
  for await (const bytes of body!) {
    text += Buffer.from(bytes as Uint8Array).toString()
    if (text.includes(wanted)) return
  }
}

describe('mirror dashboard', () => {
  test('prints a link that begins a session, where it opens no browser', async () => {
    const { home, adminUrl } = await startMirrorProcess({ upstreams: {} })
    for (const args of [['dashboard'], ['dashboard', '--no-open']]) {
      const { exit, stdout, stderr } = await run(home, args)
      expect(exit).toBe(0)
      expect(stdout).toMatch(new RegExp(`^${adminUrl}/#ticket=[\\w-]{43}\\n$`))
      expect(stderr).toContain('works once')
      expect((await beginSession(adminUrl, stdout.trim())).status).toBe(200)
      expect((await beginSession(adminUrl, stdout.trim())).status).toBe(401)
    }
    const { stderr } = await run(home, ['dashboard'], { SSH_CONNECTION: '10.0.0.1 1 10.0.0.2 22' })
    expect(stderr).toContain(`ssh -L ${new URL(adminUrl).port}:127.0.0.1:`)
  })

  test('shows which clients are configured, as soon as they are', async () => {
    const { home, adminUrl } = await startMirrorProcess({ upstreams: {} })
    const read = async () => JSON.parse((await get(adminUrl, '/api/clients/configured')).body.toString()) as object
    expect(await read()).toEqual({ clients: [] })
    const stop = new AbortController()
    const events = await fetch(new URL('/api/events', adminUrl), { signal: stop.signal })
    const told = readUntil(events, '"what":["clients"]')
    const file = join(home, 'kind.yaml')
    await writeFile(file, 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n')
    const client = ['configure', 'kind', '--file', file, '--yes']
    expect(await run(home, [...client, '--mirror', 'http://127.0.0.1:5055'])).toMatchObject({ exit: 0 })
    expect(await read()).toMatchObject({ clients: [{ client: 'kind', title: expect.stringContaining('kind.yaml') }] })
    await told
    stop.abort()
    expect(await run(home, [...client, '--undo'])).toMatchObject({ exit: 0 })
    expect(await read()).toEqual({ clients: [] })
  })

  test.runIf(process.platform === 'linux')('opens the browser, and prints the address without the ticket', async () => {
    const { home, adminUrl } = await startMirrorProcess({ upstreams: {} })
    const browser = await makeBrowser(home, 0)
    const { exit, stdout, stderr } = await run(home, ['dashboard'], browser.env)
    expect({ exit, stdout, stderr }).toEqual({ exit: 0, stdout: `Opened ${adminUrl}/ in the browser.\n`, stderr: '' })
    const link = await browser.read()
    expect(link).toMatch(new RegExp(`^${adminUrl}/#ticket=[\\w-]{43}$`))
    expect((await beginSession(adminUrl, link)).status).toBe(200)
  })

  test.runIf(process.platform === 'linux')('prints the link when the browser cannot be opened', async () => {
    const { home, adminUrl } = await startMirrorProcess({ upstreams: {} })
    const browser = await makeBrowser(home, 3)
    const failed = await run(home, ['dashboard'], browser.env)
    expect(failed.stdout).toContain(`${adminUrl}/#ticket=`)
    const sudo = await run(home, ['dashboard', '--json'], { ...browser.env, SUDO_UID: '0' })
    expect(JSON.parse(sudo.stdout)).toMatchObject({ opened: false, link: expect.stringContaining('#ticket=') })
  })

  test('prints JSON with the link, or without it when the browser has it', async () => {
    const { home, adminUrl } = await startMirrorProcess({ upstreams: {} })
    const printed = await run(home, ['dashboard', '--no-open', '--json'])
    expect(JSON.parse(printed.stdout)).toEqual({
      url: `${adminUrl}/`,
      opened: false,
      link: expect.stringMatching(/#ticket=[\w-]{43}$/),
      expiresInSeconds: 60,
    })
    expect(printed.stderr).toBe('')
    if (process.platform !== 'linux') return
    const opened = await run(home, ['dashboard', '--json'], (await makeBrowser(home, 0)).env)
    expect(JSON.parse(opened.stdout)).toEqual({ url: `${adminUrl}/`, opened: true })
  })

  test('exits with 3 when no mirror runs', async () => {
    const { exit, stdout, stderr } = await run(await temporaryHome(), ['dashboard'])
    expect({ exit, stdout }).toEqual({ exit: 3, stdout: '' })
    expect(stderr).toContain('mirror up')
  })
})
