import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { chromium, type Page } from 'playwright-core'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { findChromium, installChromium } from '../dashboard/support/chromium.ts'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { type MirrorCommand, mirrorCommand } from './support/mirror-command.ts'
import type { NetworkNamespace } from './support/network-namespace.ts'
import { addMachineBeside, otherAddress } from './support/other-machine.ts'
import { runnableImage } from './support/runnable-image.ts'
import { setStage, stageAddress } from './support/scene.ts'
import { startSshd } from './support/sshd.ts'

const { missing, newer } = inject('e2e')

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const pulled = '127.0.0.1:5055/docker.io/library/runnable:one'
const tcpHost = `tcp://${otherAddress}:2375`
const patience = { timeout: 30_000, interval: 200 }

/** Holds what a page sees when it sends requests: statuses by name. */
type Statuses = Readonly<Record<string, number>>

interface PrintedLink {
  readonly url: string
  readonly link: string
  readonly forwardedTo?: string
}

/** Sets up an engine, an upstream with an image that its containers reach, and a second machine that reaches only the engine. */
async function startStage(root: string, seed: number) {
  const content = { 'library/runnable': { one: await runnableImage(seed, 'oci') } }
  const stage = await setStage({ content, upstreamAddress: stageAddress })
  const neighbour = await addMachineBeside(stage.namespace)
  const { docker } = await startDockerd(stage, root, { hosts: [`unix://${dockerSocket(stage.folder)}`, tcpHost] })
  const config = { upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } } }
  return { stage, neighbour, docker, config }
}

/** Starts Chromium in a network, so that it reaches what a browser of that machine reaches. */
async function openBrowser(folder: string, { enter }: NetworkNamespace) {
  const executable = findChromium() ?? (await installChromium())
  expect(executable, 'Chromium').toBeDefined()
  const wrapper = join(folder, 'chromium')
  await writeFile(wrapper, `#!/bin/sh\nexec ${enter([executable!]).join(' ')} "$@"\n`)
  await chmod(wrapper, 0o755)
  const browser = await chromium.launch({ executablePath: wrapper, args: ['--no-sandbox'] })
  onTestFinished(() => browser.close())
  return browser
}

/** Runs `mirror dashboard --no-open --json` until `end`, and reads the link. */
async function printLink({ home }: MirrorCommand, { enter }: NetworkNamespace, env: NodeJS.ProcessEnv = {}) {
  const [file, ...args] = enter([process.execPath, program, 'dashboard', '--no-open', '--json'])
  const own = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: home, ...env }
  const child = spawn(file!, args, { env: own, stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>
  onTestFinished(() => void child.kill('SIGKILL'))
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  await expect.poll(() => `${stdout}${child.exitCode ?? ''} ${stderr}`, patience).toMatch(/^\{[^]*\}\n/)
  const end = async () => {
    child.kill('SIGINT')
    const [code] = await ended
    return { code, stderr }
  }
  return { printed: JSON.parse(stdout) as PrintedLink, ended, end }
}

/** Sends requests as the scripts of the page do, and as a page without its session does. */
const sendRequests = (page: Page) =>
  page.evaluate<Statuses>(`(async () => {
    const secret = localStorage.getItem('mirror-session')
    const send = async (path, init) => (await fetch(path, init)).status
    const change = (headers) =>
      send('/api/cache/prune', {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: '{"dryRun":true}',
      })
    return {
      read: await send('/api/status'),
      changeWithSecret: await change({ 'x-mirror-session': secret }),
      changeWithoutSecret: await change({}),
      changeWithOther: await change({ 'x-mirror-session': 'x'.repeat(43) }),
    }
  })()`)

/** Follows the link in the browser, and checks what a user does with the page. */
async function expectWorks(
  { link, url }: PrintedLink,
  browser: Awaited<ReturnType<typeof openBrowser>>,
  pull: () => Promise<unknown>,
): Promise<Page> {
  const page = await (await browser.newContext()).newPage()
  await page.goto(link)
  await page.getByText('This browser may change things.').waitFor()
  expect(page.url()).toBe(url)
  await page.locator('.state .badge', { hasText: 'live' }).waitFor()
  expect(await sendRequests(page)).toEqual({
    read: 200,
    changeWithSecret: 200,
    changeWithoutSecret: 403,
    changeWithOther: 403,
  })

  await page.getByRole('link', { name: 'Log' }).click()
  await pull()
  await page.locator('tr', { hasText: 'docker.io/library/runnable:one' }).first().waitFor()

  await page.getByRole('button', { name: 'Go offline' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Go offline' }).click()
  await page.getByText('The mirror is offline: only cached images are served.').waitFor()
  await page.getByRole('button', { name: 'Go online' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Go online' }).click()
  await page.getByText('only cached images are served').waitFor({ state: 'detached' })

  await page.reload()
  await page.getByText('This browser may change things.').waitFor()
  return page
}

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('the dashboard of a mirror in a container of %s', (_, root) => {
  test('is signed in by the link, shows what happens, and shows nothing without the link', async () => {
    const { stage, docker, config } = await startStage(root, 33)
    const command = await mirrorCommand(stage, config)
    await command.up('--runtime', 'container')
    const browser = await openBrowser(stage.folder, stage.namespace)
    const { printed, ended } = await printLink(command, stage.namespace)
    expect(await ended).toEqual([0, null])
    expect(printed.url).toBe('http://127.0.0.1:5056/')

    const stranger = await (await browser.newContext()).newPage()
    await stranger.goto(printed.url)
    await stranger.getByText('This browser is not signed in').waitFor()
    expect(await sendRequests(stranger)).toEqual({
      read: 401,
      changeWithSecret: 401,
      changeWithoutSecret: 401,
      changeWithOther: 401,
    })
    await expectWorks(printed, browser, () => docker('pull', pulled))
  })
})

describe.skipIf(missing !== undefined)('the dashboard of a mirror on another machine', () => {
  test.each(['tcp', 'ssh'])('is reached through the engine at %s, until the command ends', async (protocol) => {
    const { stage, neighbour: here, docker, config } = await startStage('', 34)
    const ssh = protocol === 'ssh' ? await startSshd(stage, here) : undefined
    const host = ssh?.host ?? tcpHost
    const PATH = `${ssh ? `${ssh.withKey}:` : ''}${process.env['PATH']}`
    const machine = { folder: stage.folder, namespace: here }
    const command = await mirrorCommand(machine, config, { DOCKER_HOST: host, PATH })
    await command.up('--runtime', 'container')
    const browser = await openBrowser(stage.folder, here)
    const { printed, end } = await printLink(command, here, { PATH })
    expect(printed.forwardedTo).toBe(host)
    const page = await expectWorks(printed, browser, () => docker('pull', pulled))
    const { code, stderr } = await end()
    expect([code, stderr]).toEqual([130, expect.stringContaining('until Ctrl-C')])
    await page.getByText('The mirror does not answer').waitFor()
  })
})
