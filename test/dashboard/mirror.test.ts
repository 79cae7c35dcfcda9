import { createServer } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, describe, expect, onTestFinished, test } from 'vitest'
import type { TicketReport } from '../../src/admin/api.ts'
import { fetchTicket } from '../support/dashboard.ts'
import { heldAt } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, type TestMirror } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { outsideAddress } from '../support/outside-address.ts'
import { pushImage } from '../support/push.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'
import { closeBrowser, hasChromium, launch, openPage, readColumn } from './support/browser.ts'
import { createSeed } from './support/seed.ts'

afterAll(closeBrowser)

const image = makeImage({ layers: [noise(300_000)] })

async function startWithImages(...tags: readonly string[]) {
  const images = Object.fromEntries(tags.map((tag) => [tag, image]))
  const upstream = await startUpstream({ images: { 'library/app': images } })
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url } })
  return { upstream, mirror }
}

/** Pulls a tag as a client does, with the layers. */
async function pullImage(mirror: TestMirror, tag: string): Promise<void> {
  const headers = { 'user-agent': 'docker/28.3.2 go/go1.24.5' }
  for (const path of [
    `manifests/${tag}`,
    `manifests/${image.digest}`,
    ...[...image.blobs.keys()].map((digest) => `blobs/${digest}`),
  ])
    expect((await mirror.get(`/v2/library/app/${path}`, { headers })).status).toBe(200)
}

/** Opens the page with a session, as `mirror dashboard` does. */
async function openWithSession(mirror: TestMirror, fragment = ''): Promise<Page> {
  const page = await openPage(`${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`)
  await page.getByText('This browser may change things.').waitFor()
  if (fragment !== '') await page.goto(`${mirror.adminUrl}/${fragment}`)
  return page
}

const listImages = async (mirror: TestMirror) => (await mirror.status()).images.map(({ name }) => name)
const badge = (page: Page) => page.locator('.state .badge')

describe.runIf(hasChromium)('the page of a running mirror', () => {
  test('shows the numbers of mirror status', async () => {
    const { mirror } = await startWithImages('v1', 'v2')
    await pullImage(mirror, 'v1')
    await pullImage(mirror, 'v1')
    await pullImage(mirror, 'v2')
    const page = await openPage(mirror.adminUrl)
    await page.locator('.tile').first().waitFor()
    const { cache, upstreams, images } = await mirror.status()
    const tiles = (await page.locator('.tiles').innerText()).replaceAll(/\s+/g, ' ')
    expect(tiles).toContain(`${cache.pulls} in all`)
    expect(tiles).toContain(
      `${Math.round(cache.bytesSaved / 1024)} KiB in all, of ${Math.round(cache.bytesServed / 1024)} KiB served`,
    )
    expect(tiles).toContain(`${Math.floor(cache.hitRatio * 100)} % in all`)
    expect(await readColumn(page, 'Upstreams', 'Registry')).toEqual(['docker.io'])
    expect(await readColumn(page, 'Upstreams', 'Hits')).toEqual([String(upstreams['docker.io']!.hits)])
    expect(await readColumn(page, 'Upstreams', 'Misses')).toEqual([String(upstreams['docker.io']!.misses)])
    await page.getByRole('link', { name: 'Images' }).click()
    await page.getByRole('table', { name: 'Images' }).waitFor()
    expect((await readColumn(page, 'Images', 'Image')).toSorted()).toEqual(images.map(({ name }) => name).toSorted())
    expect((await readColumn(page, 'Images', 'Pulls')).toSorted()).toEqual(
      images.map(({ pulls }) => String(pulls)).toSorted(),
    )
  })

  test('shows a pull within a second', async () => {
    const { mirror } = await startWithImages('v1')
    const page = await openPage(`${mirror.adminUrl}/#/log`)
    await badge(page).getByText('live').waitFor()
    await pullImage(mirror, 'v1')
    await page.getByText('docker.io/library/app:v1').waitFor({ timeout: 1000 })
    expect(await page.locator('tr', { hasText: 'docker.io/library/app:v1' }).innerText()).toContain('docker/28.3.2')
  })

  test('shows a download while it is under way, with the clients that wait for it', async () => {
    const { mirror, upstream } = await startWithImages('v1')
    const page = await openPage(mirror.adminUrl)
    await badge(page).getByText('live').waitFor()
    let release!: () => void
    upstream.on(anyBlob, heldAt(150_000, new Promise<void>((resolve) => (release = resolve))))
    const [layer] = image.layers
    expect((await mirror.get(`/v2/library/app/manifests/v1`)).status).toBe(200)
    const pulls = [1, 2].map(() => mirror.get(`/v2/library/app/blobs/${layer}`))
    await page.locator('.downloads li').first().waitFor()
    await expect.poll(() => page.locator('.downloads').innerText()).toMatch(/docker\.io\/library\/app.*\n?.*2 clients/s)
    release()
    await Promise.all(pulls)
    await page.locator('.downloads').waitFor({ state: 'detached' })
  })

  test('draws the traffic of the last minutes', async () => {
    const { mirror } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const page = await openPage(mirror.adminUrl)
    await page.getByRole('button', { name: 'Hour' }).click()
    const figure = page.locator('figure', { hasText: 'Requests' }).first()
    const { cache } = await mirror.status()
    await expect
      .poll(() => figure.locator('.legend').innerText())
      .toMatch(new RegExp(`Hits ${cache.hits}\\s+Stale 0\\s+Misses ${cache.misses}`))
    await expect.poll(() => page.locator('path.line').count()).toBe(1)
  })

  test('shows findings of the doctor as soon as a command has stored them', async () => {
    const { mirror } = await startWithImages('v1')
    const page = await openPage(`${mirror.adminUrl}/#/doctor`)
    await page.getByText('No checks have run yet.').waitFor()
    const token = (await readFile(mirror.paths.tokenFile, 'utf8')).trim()
    const { report } = createSeed().doctor
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
    const body = JSON.stringify(report)
    expect((await get(mirror.adminUrl, '/api/doctor', { method: 'PUT', headers, body })).status).toBeLessThan(300)
    await page.getByText('podman pulls docker.io from the origin.').waitFor({ timeout: 5000 })
  })

  test('asks for the first steps until something was pulled', async () => {
    const { mirror } = await startWithImages('v1')
    const page = await openPage(mirror.adminUrl)
    await page.locator('.first').waitFor()
    await pullImage(mirror, 'v1')
    await page.locator('.first').waitFor({ state: 'detached', timeout: 5000 })
  })

  test('says when the mirror ends, and continues with the next one', async () => {
    const { mirror } = await startWithImages('v1')
    const page = await openPage(mirror.adminUrl, { expected: /ERR_/ })
    await badge(page).getByText('live').waitFor()
    const started = performance.now()
    await mirror.close()
    expect(performance.now() - started).toBeLessThan(5000)
    await badge(page).getByText('disconnected').waitFor()
  })
})

describe.runIf(hasChromium)('the actions', () => {
  test('are off without a session, and say which command begins one', async () => {
    const { mirror } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const page = await openPage(`${mirror.adminUrl}/#/images`)
    for (const name of [
      'Prune now',
      'Go offline',
      'Check: docker.io/library/app:v1',
      'Remove: docker.io/library/app:v1',
    ]) {
      const button = page.getByRole('button', { name })
      await button.waitFor()
      expect(await button.isDisabled()).toBe(true)
      expect(await button.getAttribute('title')).toContain('mirror dashboard')
    }
    await page.getByText('Read-only. To change things here:').waitFor()
  })

  test('are refused by the mirror without a session, whatever the page sends', async () => {
    const { mirror } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const page = await openPage(mirror.adminUrl, { expected: /401|403/ })
    const statuses = await page.evaluate(async () => {
      const send = async (headers: Record<string, string>) =>
        (await fetch('/api/cache/rm', { method: 'POST', headers, body: '{"names":["docker.io/library/app"]}' })).status
      return [
        await send({}),
        await send({ 'x-mirror-session': 'guess' }),
        await send({ authorization: 'Bearer guess' }),
      ]
    })
    expect(statuses).toEqual([401, 401, 401])
    expect(await listImages(mirror)).toEqual(['docker.io/library/app:v1'])
  })

  test('need a ticket, which leaves the address at once, and end with the session', async () => {
    const { mirror } = await startWithImages('v1')
    const ticket = await fetchTicket(mirror)
    const page = await openPage(`${mirror.adminUrl}/#ticket=${ticket}`)
    await page.getByText('This browser may change things.').waitFor()
    expect(page.url()).toBe(`${mirror.adminUrl}/`)
    expect(await page.evaluate(() => history.length)).toBe(2)
    await page.reload()
    await page.getByText('This browser may change things.').waitFor()
    await page.getByRole('button', { name: 'End the session' }).click()
    await page.getByText('Read-only.').waitFor()
    await page.reload()
    await page.getByText('Read-only.').waitFor()
  })

  test('say that a ticket was used before, and stop in the browser that used it', async () => {
    const { mirror } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const address = `${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`
    const first = await openPage(address, { expected: /401/ })
    await first.getByText('This browser may change things.').waitFor()
    const second = await openPage(address, { expected: /401/ })
    await second.getByText('This link has been used, or is older than a minute.').waitFor()
    await second.getByText('Read-only.').waitFor()
    await first.getByRole('link', { name: 'Images' }).click()
    await first.getByRole('button', { name: 'Check: docker.io/library/app:v1' }).click()
    await first.getByText('The session has ended. Run: mirror dashboard').waitFor()
    await first.getByText('Read-only.').waitFor()
  })

  test('remove an image after a look at what goes', async () => {
    const { mirror } = await startWithImages('v1', 'v2')
    await pullImage(mirror, 'v1')
    await pullImage(mirror, 'v2')
    const page = await openWithSession(mirror, '#/images')
    await page.getByRole('button', { name: 'Remove: docker.io/library/app:v1' }).click()
    const dialog = page.getByRole('dialog')
    await dialog.getByText('This removes 1 image').waitFor()
    expect(await dialog.locator('li').allInnerTexts()).toEqual(['docker.io/library/app:v1'])
    expect(await listImages(mirror)).toHaveLength(2)
    await dialog.getByRole('button', { name: 'Remove' }).click()
    await page.getByText('Removed 1 image').waitFor()
    await expect.poll(() => readColumn(page, 'Images', 'Image')).toEqual(['docker.io/library/app:v2'])
    expect(await listImages(mirror)).toEqual(['docker.io/library/app:v2'])
  })

  test('remove a pushed image, which appears when it is pushed', async () => {
    const mirror = await startMirrorProcess({ upstreams: {}, registry: true })
    const token = (await readFile(join(mirror.home, 'state', 'token'), 'utf8')).trim()
    const answer = await get(mirror.adminUrl, '/api/session/ticket', {
      method: 'POST',
      headers: { authorization: `Bearer ${token}` },
    })
    const { ticket } = JSON.parse(answer.body.toString()) as TicketReport
    const page = await openPage(`${mirror.adminUrl}/#ticket=${ticket}`)
    await page.getByText('This browser may change things.').waitFor()
    await page.getByRole('link', { name: 'Pushed' }).click()
    await page.getByText('Nothing has been pushed yet.').waitFor()
    await pushImage(mirror.registryUrl!, 'team/app', '1.0', image)
    await page.reload()
    await expect.poll(() => readColumn(page, 'Pushed images', 'Image')).toEqual(['team/app:1.0'])
    await page.getByRole('button', { name: 'Remove: team/app:1.0' }).click()
    await page.getByRole('dialog').getByText('This removes 1 image').waitFor()
    await page.getByRole('dialog').getByRole('button', { name: 'Remove' }).click()
    await page.getByText('Nothing has been pushed yet.').waitFor()
    expect((await get(mirror.registryUrl!, '/v2/team/app/manifests/1.0')).status).toBe(404)
  })

  test('prune the cache, check a tag, and go offline and online', async () => {
    const { mirror, upstream } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const page = await openWithSession(mirror, '#/images')
    await page.getByRole('button', { name: 'Prune now' }).click()
    await page.getByRole('dialog').getByText('Nothing to remove.').waitFor()
    await page.getByRole('dialog').getByRole('button', { name: 'Prune' }).click()
    await page.getByText('Removed 0 images').waitFor()

    await page.getByRole('button', { name: 'Check: docker.io/library/app:v1' }).click()
    await page.getByText('docker.io/library/app:v1 is up to date.').waitFor()
    upstream.push('library/app', 'v1', makeImage({ layers: [noise(1000, 7)] }))
    await page.getByRole('button', { name: 'Check: docker.io/library/app:v1' }).click()
    await page.getByText('has changed: the next pull fetches it.').waitFor()
    await page.locator('tr', { hasText: 'outdated' }).waitFor()

    const isOffline = async () => (await mirror.status()).offline?.active
    await page.getByRole('button', { name: 'Go offline' }).click()
    await page.getByRole('dialog').getByRole('button', { name: 'Go offline' }).click()
    await page.getByText('The mirror is offline: only cached images are served.').waitFor()
    expect(await isOffline()).toBe(true)
    expect(await page.title()).toBe('offline – mirror')
    await page.getByRole('button', { name: 'Go online' }).click()
    await page.getByRole('dialog').getByRole('button', { name: 'Go online' }).click()
    await page.getByText('only cached images are served').waitFor({ state: 'detached' })
    expect(await isOffline()).toBe(false)
  })
})

describe.runIf(hasChromium && outsideAddress !== undefined)('a page where reading needs a session', () => {
  /** Lets the page wait for an answer that the mirror has given. */
  const delayAnswer = async (page: Page, path: string, ms: number) => {
    // Answers that still wait at the end of the test have no page.
    onTestFinished(() => page.unrouteAll({ behavior: 'ignoreErrors' }))
    await page.route(`**${path}`, async (route) => {
      const response = await route.fetch()
      await page.waitForTimeout(ms)
      await route.fulfill({ response })
    })
  }

  test('says how to sign in, then shows the numbers, and shows none after the end of the session', async () => {
    const mirror = await startTestMirror({ adminHost: outsideAddress! })
    const page = await openPage(mirror.adminUrl, { expected: /401|Opener-Policy/ })
    await page.getByText('This browser is not signed in').waitFor()
    await badge(page).getByText('signed out').waitFor()
    expect(await page.locator('body').innerText()).toContain('mirror dashboard')
    expect(await page.locator('body').innerText()).not.toContain('does not answer')

    const other = await page.context().newPage()
    await other.goto(mirror.adminUrl)
    await other.getByText('This browser is not signed in').waitFor()
    await page.goto(`${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`)
    for (const tab of [page, other]) {
      await tab.getByText('This browser may change things.').waitFor()
      await tab.locator('.tile').first().waitFor()
      await badge(tab).getByText('live').waitFor()
    }

    await page.getByRole('button', { name: 'End the session' }).click()
    for (const tab of [page, other]) {
      await tab.getByText('This browser is not signed in').waitFor()
      expect(await tab.locator('.tile').count()).toBe(0)
      expect(await tab.locator('footer').innerText()).toBe('')
    }
  })

  test('stays signed in when the answers to its first requests come late', async () => {
    const mirror = await startTestMirror({ adminHost: outsideAddress! })
    const page = await openPage('about:blank', { expected: /401|Opener-Policy/ })
    await delayAnswer(page, '/api/status', 1500)
    await page.goto(`${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`)
    await page.locator('footer').getByText('mirror 0.0.0-test').waitFor()
    await page.getByText('This browser may change things.').waitFor()
  })

  test('is signed in by a link that is opened while it still waits for a refusal', async () => {
    const mirror = await startTestMirror({ adminHost: outsideAddress! })
    const page = await openPage('about:blank', { expected: /401|Opener-Policy/ })
    await delayAnswer(page, '/api/status', 1500)
    const asked = page.waitForRequest('**/api/status')
    await page.goto(mirror.adminUrl)
    await asked
    const refused = page.waitForResponse((response) => response.status() === 401 && response.url().endsWith('/status'))
    await page.goto(`${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`)
    await page.getByText('This browser may change things.').waitFor()
    await refused
    await page.locator('footer').getByText('mirror 0.0.0-test').waitFor()
    expect(await page.getByText('This browser may change things.').count()).toBe(1)
  })
})

describe.runIf(hasChromium)('pages of other sites', () => {
  test('get nothing through a name of their own that resolves to this machine', async () => {
    const { mirror } = await startWithImages('v1')
    const browser = await launch(['--host-resolver-rules=MAP evil.example 127.0.0.1'])
    onTestFinished(() => browser.close())
    const { port } = new URL(mirror.adminUrl)
    const page = await openPage('about:blank', { browser, expected: /421/ })
    for (const path of ['/', '/api/status', '/api/events'])
      expect((await page.goto(`http://evil.example:${port}${path}`))!.status(), path).toBe(421)
  })

  test('read nothing and change nothing, also when the browser has a session', async () => {
    const { mirror } = await startWithImages('v1')
    await pullImage(mirror, 'v1')
    const server = createServer((_, response) =>
      response.writeHead(200, { 'content-type': 'text/html' }).end('<h1>other</h1>'),
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const page = await openPage(`${mirror.adminUrl}/#ticket=${await fetchTicket(mirror)}`, {
      expected: /CORS|ERR_|403|Failed to load|frame-ancestors|Refused to frame|Framing|WebSocket/,
    })
    await page.getByText('This browser may change things.').waitFor()
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`)
    const statuses: number[] = []
    page.on('response', (response) => void statuses.push(response.status()))
    const outcomes = await page.evaluate(async (url) => {
      const settle = (promise: Promise<Response>) =>
        promise.then(
          ({ type }) => type,
          () => 'failed',
        )
      const body = '{"names":["docker.io/library/app"]}'
      const events = new EventSource(`${url}/api/events`, { withCredentials: true })
      const heard = new Promise<string>((resolve) => {
        events.addEventListener('summary', () => resolve('heard'))
        events.addEventListener('error', () => resolve('refused'))
      })
      const socket = new WebSocket(`${url.replace('http', 'ws')}/api/events`)
      const opened = new Promise<string>((resolve) => {
        socket.addEventListener('open', () => resolve('opened'))
        socket.addEventListener('error', () => resolve('refused'))
      })
      // A form sends any text across origins, and needs no permission.
      const frame = document.createElement('iframe')
      frame.name = 'answer'
      const form = document.createElement('form')
      Object.assign(form, { action: `${url}/api/cache/rm`, method: 'post', enctype: 'text/plain', target: 'answer' })
      const input = document.createElement('input')
      Object.assign(input, { name: '{"names":["docker.io/library/app"],"', value: '":1}' })
      form.append(input)
      document.body.append(frame, form)
      const sent = new Promise((resolve) => frame.addEventListener('load', resolve, { once: true }))
      form.submit()
      await sent
      const withSecret = { 'content-type': 'application/json', 'x-mirror-session': 'guess' }
      return [
        await settle(fetch(`${url}/api/status`, { credentials: 'include' })),
        await settle(fetch(`${url}/api/session`, { credentials: 'include' })),
        await settle(fetch(`${url}/api/cache/rm`, { method: 'POST', mode: 'no-cors', credentials: 'include', body })),
        await settle(
          fetch(`${url}/api/cache/rm`, { method: 'POST', headers: withSecret, credentials: 'include', body }),
        ),
        await heard,
        await opened,
      ]
    }, mirror.adminUrl)
    expect(outcomes).toEqual(['failed', 'failed', 'failed', 'failed', 'refused', 'refused'])
    expect(statuses.filter((status) => status < 400)).toEqual([])
    expect(await listImages(mirror)).toEqual(['docker.io/library/app:v1'])
  })

  test('cannot put the page into a frame', async () => {
    const { mirror } = await startWithImages('v1')
    const server = createServer((_, response) =>
      response.writeHead(200, { 'content-type': 'text/html' }).end(`<iframe src="${mirror.adminUrl}/"></iframe>`),
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const page = await openPage(`http://127.0.0.1:${port}/`, { expected: /./ })
    await page.waitForTimeout(500)
    expect(await page.frames()[1]?.locator('.top').count()).toBe(0)
  })
})
