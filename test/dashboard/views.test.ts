import type { Page } from 'playwright-core'
import { afterAll, describe, expect, test } from 'vitest'
import type { ImageReport } from '../../src/admin/api.ts'
import { createLogRenderer } from '../../src/cli/render/log.ts'
import { createColors } from '../../src/cli/terminal.ts'
import { nameOutcome } from '../../src/stats/requests.ts'
import { closeBrowser, hasChromium, openPage, pageFolder, readColumn, startSeeded } from './support/browser.ts'
import { createEmptySeed, createRequests, createSeed } from './support/seed.ts'
import { startSeededServer } from './support/seeded-server.ts'

afterAll(closeBrowser)

/** Counts what the text of an element says, as a user reads it. */
const textOf = async (page: Page, selector: string) =>
  (await page.locator(selector).innerText()).replaceAll(/\s+/g, ' ')

describe.runIf(hasChromium)('the overview', () => {
  test('shows the numbers of today, the quota of Docker Hub and the disk', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url)
    await page.locator('.tile').first().waitFor()
    expect(await textOf(page, '.tiles')).toBe(
      'Pulls today 47 812 in all since ' +
        `${new Date(Date.now() - 31 * 86_400_000).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })} ` +
        'Saved today 3.4 GiB 55 GiB in all, of 61 GiB served ' +
        'Hit ratio today 89 % 212 hits, 24 misses; 87 % in all ' +
        `Docker Hub quota 76 of 100 left ${await textOf(page, '.tile:nth-child(4) dd > span')} ` +
        'Disk 17.4 GiB of 20 GiB 214 blobs, 310 MiB pushed, 118 GiB free',
    )
    expect(await textOf(page, '.tile:nth-child(4) dd > span')).toMatch(/^resets by \d\d:\d\d; 418 pulls avoided$/)
    expect(await page.title()).toBe('quay.io in trouble – mirror')
    expect(await textOf(page, '.state .badge')).toBe('quay.io in trouble')
  })

  test.each([
    ['unlimited', { unlimited: true as const, at: new Date().toISOString() }],
    ['unknown', undefined],
  ])('says that the quota is %s', async (text, rateLimit) => {
    const seed = createSeed()
    const { rateLimit: _, ...hub } = seed.status.upstreams['docker.io']!
    seed.status.upstreams['docker.io'] = { ...hub, ...(rateLimit && { rateLimit }) }
    const { url } = await startSeeded(seed)
    const page = await openPage(url)
    await page.locator('.tile').first().waitFor()
    expect(await textOf(page, '.tile:nth-child(4)')).toContain(`Docker Hub quota ${text}`)
  })

  test('shows no quota of Docker Hub where docker.io is another server', async () => {
    const seed = createSeed()
    const { rateLimit: _, pullsAvoided: __, ...other } = seed.status.upstreams['docker.io']!
    seed.status.upstreams['docker.io'] = other
    const { url } = await startSeeded(seed)
    const page = await openPage(url)
    await page.locator('.tile').first().waitFor()
    expect(await page.locator('.tile').allTextContents()).not.toContainEqual(expect.stringContaining('Docker Hub'))
  })

  test('draws each chart, reads it with the arrow keys, and has the same numbers as a table', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url)
    for (const [title, count] of [
      ['Requests', 3],
      ['Bytes', 2],
      ['Upstream latency', 3],
    ] as const) {
      const figure = page.locator('figure', { hasText: title }).first()
      await expect.poll(() => figure.locator('svg path.stack, svg path.overlap, svg path.line').count()).toBe(count)
      const lengths = await figure
        .locator('svg g > path.stack, svg g > path.overlap, svg g > path.line')
        .evaluateAll((paths) => paths.map((path) => path.getAttribute('d')!.length))
      expect(Math.min(...lengths)).toBeGreaterThan(20)
      const height = await figure.locator('.legend').evaluate((legend) => legend.clientHeight)
      await figure.locator('.plot').focus()
      await page.keyboard.press('ArrowLeft')
      await page.keyboard.press('ArrowLeft')
      expect(await figure.locator('figcaption span').innerText()).toMatch(/^\d+ \w{3,4} \d\d:\d\d$/)
      expect(await figure.locator('.legend').evaluate((legend) => legend.clientHeight)).toBe(height)
      await figure.getByText('Numbers').click()
      await expect.poll(() => figure.getByRole('table').locator('tbody tr').count()).toBeGreaterThan(10)
    }
  })

  test('asks for the range that a button names', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url)
    for (const range of ['hour', 'week', 'month', 'day']) {
      const asked = page.waitForResponse((response) => response.url().endsWith(`/api/history?range=${range}`))
      await page.getByRole('button', { name: new RegExp(`^${range}$`, 'i') }).click()
      expect((await asked).status()).toBe(200)
      expect(await page.locator('.segments [aria-pressed=true]').innerText()).toMatch(new RegExp(range, 'i'))
    }
  })

  test('shows downloads with their progress, speed and clients, and upstreams with their state', async () => {
    const server = await startSeeded(createSeed())
    const page = await openPage(server.url)
    await page.locator('.downloads li').first().waitFor()
    expect(await textOf(page, '.downloads li:first-child')).toMatch(
      /^mcr\.microsoft\.com\/playwright sha256:\w{12} 32 % of 640 MiB · 11 MiB\/s · 39 s left · 2 clients$/,
    )
    expect(await page.locator('.downloads progress').first().getAttribute('max')).toBe(String(640 * 1024 ** 2))
    expect(await readColumn(page, 'Upstreams', 'Registry')).toEqual([
      'docker.io',
      'ghcr.io',
      'quay.io',
      'registry.k8s.io',
      'mcr.microsoft.com',
    ])
    expect(await readColumn(page, 'Upstreams', 'State')).toContainEqual(
      expect.stringMatching(/^failing quay\.io answered 502/),
    )
    server.send('downloads', [])
    await expect.poll(() => page.locator('.downloads').count()).toBe(0)
  })

  test('teaches the first steps while nothing was pulled', async () => {
    const { url } = await startSeeded(createEmptySeed())
    const page = await openPage(url, { permissions: ['clipboard-read', 'clipboard-write'] })
    const steps = page.locator('.first')
    await steps.waitFor()
    expect(await steps.innerText()).toContain('mirror configure docker')
    expect(await steps.innerText()).toContain('mirror configure kind')
    await page.getByRole('button', { name: 'Copy: mirror configure docker' }).click()
    await page.getByText('Copied.').waitFor()
    expect(await page.evaluate(() => navigator.clipboard.readText())).toBe('mirror configure docker')
  })
})

describe.runIf(hasChromium)('the tables', () => {
  test('show each image, sort by every column and find any part of a name', async () => {
    const seed = createSeed()
    const { url } = await startSeeded(seed)
    const page = await openPage(`${url}/#/images`)
    await page.getByRole('table', { name: 'Images' }).waitFor()
    expect(await page.locator('tbody tr').count()).toBe(seed.images.length)
    await page.getByRole('button', { name: 'Size' }).click()
    const sizes = seed.images.map(({ bytes }) => bytes).toSorted((a, b) => b - a)
    expect((await readColumn(page, 'Images', 'Size'))[0]).toBe(`${Math.round(sizes[0]! / 1024 ** 2)} MiB`)
    expect(await page.locator('th[aria-sort]').getAttribute('aria-sort')).toBe('descending')
    await page.getByRole('button', { name: 'Saved' }).click()
    const saved = seed.images.map(({ bytesSaved = 0 }) => bytesSaved).toSorted((a, b) => b - a)
    expect((await readColumn(page, 'Images', 'Saved'))[0]).toBe(`${Math.round(saved[0]! / 1024 ** 3)} GiB`)
    await page.getByRole('button', { name: 'Image', exact: true }).click()
    expect((await readColumn(page, 'Images', 'Image'))[0]).toContain('docker.io/grafana/grafana:12.1.0')
    await page.getByLabel('Search Images').fill('k8s 3.10')
    expect(await readColumn(page, 'Images', 'Image')).toEqual([expect.stringContaining('registry.k8s.io/pause:3.10')])
    await page.getByLabel('Search Images').fill('nothing like this')
    await page.getByText('Nothing contains “nothing like this”.').waitFor()
  })

  test('mark images whose tag has moved, and those that go next when the cache is full', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(`${url}/#/images`)
    await page.getByRole('table', { name: 'Images' }).waitFor()
    expect(await page.locator('tr', { hasText: 'outdated' }).innerText()).toContain('node:24-slim')
    expect(await page.getByText('goes next').count()).toBe(3)
  })

  test('show pushed images and clients, with a warning for a client that only sends HEAD', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(`${url}/#/pushed`)
    await page.getByRole('table', { name: 'Pushed images' }).waitFor()
    expect(await readColumn(page, 'Pushed images', 'Image')).toEqual([
      'app:1.2',
      'app:1.3',
      'team/worker:latest',
      'team/worker:dev',
    ])
    await page.getByRole('link', { name: 'Clients' }).click()
    await page.getByRole('table', { name: 'Clients' }).waitFor()
    expect(await readColumn(page, 'Clients', 'Program')).toContain('podman 5.5.2 only HEAD: docker.io')
    expect((await readColumn(page, 'Clients', 'Configured')).toSorted()).toEqual(
      ['docker', 'docker', 'docker', 'docker, kind', 'docker, kind', 'no', '–'].toSorted(),
    )
    expect(await readColumn(page, 'Configured on this machine', 'Client')).toEqual(['docker', 'kind', 'minikube'])
    expect((await readColumn(page, 'Configured on this machine', 'Last seen')).at(-1)).toBe('not yet')
  })

  test('stay quick with 1,000 rows', async () => {
    const seed = createSeed()
    seed.images = Array.from({ length: 1000 }, (_, index): ImageReport => {
      const name = `docker.io/team/app-${index}:1`
      return {
        name,
        digest: `sha256:${index}`,
        bytes: index * 1000,
        pulls: index,
        lastPulled: new Date().toISOString(),
      }
    })
    const { url } = await startSeeded(seed)
    const page = await openPage(`${url}/#/images`)
    await page.getByRole('button', { name: 'Show all 1,000' }).click()
    await expect.poll(() => page.locator('tbody tr').count()).toBe(1000)
    const elapsed = await page.evaluate(async () => {
      const search = document.querySelector<HTMLInputElement>('input[type=search]')!
      const start = performance.now()
      search.value = 'app-99'
      search.dispatchEvent(new Event('input'))
      await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)))
      return performance.now() - start
    })
    expect(await page.locator('tbody tr').count()).toBe(11)
    // Takes about 30 ms; a busy machine gets more.
    expect(elapsed).toBeLessThan(1000)
  })
})

describe.runIf(hasChromium)('the log', () => {
  test('shows requests as they happen, filters them, and can be paused', async () => {
    const seed = createSeed()
    const server = await startSeeded(seed)
    const page = await openPage(`${server.url}/#/log`)
    const rows = page.locator('tbody tr')
    await expect.poll(() => rows.count()).toBe(120)
    await page.getByLabel('Outcome').selectOption('failed')
    expect(await rows.allInnerTexts()).toEqual([expect.stringContaining('docker.io does not have it.')])
    await page.getByLabel('Outcome').selectOption('')
    const [request] = createRequests(1)
    const sendOne = (id: string, repository: string) =>
      server.send('requests', { requests: [{ ...request!, id, repository, at: new Date().toISOString() }], omitted: 0 })
    await page.getByLabel('Filter the log').fill('team/fresh')
    sendOne('live1', 'docker.io/team/fresh')
    await expect.poll(() => rows.count()).toBe(1)
    await page.getByRole('button', { name: 'Pause', exact: true }).click()
    sendOne('live2', 'docker.io/team/fresh')
    await page.waitForTimeout(300)
    expect(await rows.count()).toBe(1)
    await page.getByRole('button', { name: 'Continue' }).click()
    await expect.poll(() => rows.count()).toBe(2)
  })

  test('has the words of mirror logs: checks, what does not exist before a push, and what the client left', async () => {
    const seed = createSeed()
    const [request] = createRequests(1)
    const answered = [
      { method: 'GET', status: 200, cache: 'hit', probe: true },
      { method: 'HEAD', status: 404 },
      { method: 'GET', status: 499 },
      { method: 'GET', status: 200, cache: 'revalidated' },
      { method: 'GET', status: 503 },
    ] as const
    seed.requests = answered.map(({ method, status, ...rest }, index) => ({
      ...request!,
      id: `word${index}`,
      at: new Date(Date.now() - index * 1000).toISOString(),
      method,
      status,
      ...('cache' in rest ? {} : { cache: 'miss' as const }),
      ...rest,
      outcome: nameOutcome({ method, status, ...rest }),
    }))
    const render = createLogRenderer({ colors: createColors(false), columns: () => undefined, now: Date.now() })
    const printed = answered.map(
      (fields) =>
        render(JSON.stringify({ msg: 'request', ...fields }))
          .trim()
          .split(' ')[0],
    )
    expect(printed).toEqual(['CHECK', 'ABSENT', 'LEFT', 'HIT', '503'])
    const { url } = await startSeeded(seed)
    const page = await openPage(`${url}/#/log`)
    await page.locator('tbody tr').first().waitFor()
    const badges = page.locator('tbody .badge')
    expect((await badges.allInnerTexts()).map((word) => word.toUpperCase())).toEqual(printed)
    expect(await badges.nth(1).getAttribute('class')).not.toMatch(/\bbad\b/)
  })

  test('keeps 500 requests, and says how many were too many', async () => {
    const server = await startSeeded(createSeed())
    const page = await openPage(`${server.url}/#/log`)
    const rows = page.locator('tbody tr')
    await expect.poll(() => rows.count()).toBe(120)
    for (let batch = 0; batch < 6; batch += 1) {
      const requests = createRequests(100).map((request) => ({ ...request, id: `${batch} ${request.id}` }))
      server.send('requests', { requests, omitted: batch === 0 ? 1234 : 0 })
    }
    await page.getByText('1,234 more requests were too many to show.').waitFor()
    await expect.poll(() => rows.count()).toBe(500)
  })
})

describe.runIf(hasChromium)('the findings of the doctor', () => {
  test('come with the worst first and the command that mends them', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(`${url}/#/doctor`)
    await page.locator('.findings li').first().waitFor()
    expect(await textOf(page, '.findings:first-of-type > li:first-child >> nth=0')).toBe(
      'fail podman: podman pulls docker.io from the origin. clients.podman.not-configured mirror configure podman Copy',
    )
    const shown = page.locator('.findings li:visible')
    expect(await shown.evaluateAll((items) => items.map((item) => item.className))).toEqual(['fail', 'warn'])
  })

  test('that are ok or skipped are behind their number for each group, which opens with the keyboard', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(`${url}/#/doctor`)
    const group = page.locator('details').first()
    expect(await group.locator('summary').innerText()).toBe('The mirror 1 ok')
    await group.locator('summary').focus()
    await page.keyboard.press('Enter')
    await group.getByText('The command and the running mirror have the version 0.2.0.').waitFor()
    expect(await page.locator('details').count()).toBeGreaterThan(1)
  })

  test('fit a phone with a long path, and are one line of the overview with their warnings', async () => {
    const seed = createSeed()
    const path = `/var/lib/${'a-long-folder'.repeat(20)}`
    const [first] = seed.doctor.report!.results
    const results = [...seed.doctor.report!.results, { ...first!, id: 'x', state: 'warn' as const, saw: path }].map(
      (one) =>
        one.state === 'fail' ? { ...one, saw: path, advice: path, fix: { command: `cat ${path}`, isOwn: false } } : one,
    )
    seed.doctor.report = { ...seed.doctor.report!, results, counts: { ...seed.doctor.report!.counts, warn: 2 } }
    const { url } = await startSeeded(seed)
    const page = await openPage(`${url}/#/doctor`, { viewport: { width: 360, height: 740 } })
    await page.locator('.findings li').first().waitFor()
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBe(360)
    const wide = await page
      .locator('.findings *')
      .evaluateAll((all) => all.filter((one) => one.getBoundingClientRect().right > 348).length)
    expect(wide).toBe(0)
    await page.goto(`${url}/#/overview`)
    await page.getByText('mirror doctor found 1 failure and 2 warnings: see Doctor.').waitFor()
  })

  test('show that they are made while a run is under way', async () => {
    const seed = createSeed()
    seed.secret = 'secret'
    let end!: () => void
    const ended = new Promise<void>((resolve) => (end = resolve))
    seed.answer = async () => {
      await ended
      return seed.doctor.report
    }
    const { url, changes } = await startSeeded(seed)
    const page = await openPage(`${url}/#/doctor`)
    await page.getByRole('button', { name: 'Run now' }).click()
    const button = page.getByRole('button', { name: 'Running the checks …' })
    expect(await button.isDisabled()).toBe(true)
    // It is still under way after a look at another view.
    await page.getByRole('link', { name: 'Log' }).click()
    await page.getByRole('link', { name: 'Doctor' }).click()
    await button.waitFor()
    end()
    await page.getByText('The checks have run.').waitFor()
    expect(await page.getByRole('button', { name: 'Run now' }).isEnabled()).toBe(true)
    expect(changes.length).toBe(1)
  })
})

describe.runIf(hasChromium)('a change that takes time', () => {
  test('keeps its dialog open with the button off until it is done', async () => {
    const seed = createSeed()
    seed.secret = 'secret'
    let end!: () => void
    const ended = new Promise<void>((resolve) => (end = resolve))
    let asked = 0
    seed.answer = async () => {
      // The first request is the preview.
      if (++asked > 1) await ended
      return { images: ['docker.io/library/redis:7'], blobs: 1, bytes: 45_000_000, unknown: [] }
    }
    const { url } = await startSeeded(seed)
    const page = await openPage(`${url}/#/images`)
    await page.getByRole('button', { name: 'Prune now' }).click()
    await page.getByText('This removes 1 image, 1 blob,').waitFor()
    await page.getByRole('button', { name: 'Prune', exact: true }).click()
    expect(await page.getByRole('button', { name: 'Prune …' }).isDisabled()).toBe(true)
    end()
    await page.getByText('Removed 1 image').waitFor()
    await page.locator('dialog').waitFor({ state: 'detached' })
  })
})

describe.runIf(hasChromium)('a mirror that does not answer', () => {
  test('leaves the numbers, says so, and continues when it is back', async () => {
    const seed = createSeed()
    const first = await startSeededServer(pageFolder, seed)
    const page = await openPage(first.url, { expected: /ERR_/ })
    await page.locator('.tile').first().waitFor()
    await first.close()
    await page.getByText('The mirror does not answer').waitFor()
    expect(await textOf(page, '.tile:first-child')).toContain('Pulls today 47')
    expect(await page.title()).toBe('disconnected – mirror')
    const second = await startSeededServer(pageFolder, seed, Number(new URL(first.url).port))
    await page.getByRole('button', { name: 'Retry now' }).click()
    await page.getByText('The mirror does not answer').waitFor({ state: 'detached' })
    await second.close()
  })

  test('is found within two seconds when it was away for some', async () => {
    const seed = createSeed()
    const first = await startSeededServer(pageFolder, seed)
    const page = await openPage(first.url, { expected: /ERR_/ })
    await page.locator('.tile').first().waitFor()
    await first.close()
    await page.getByText('The mirror does not answer').waitFor()
    await page.waitForTimeout(8500)
    const second = await startSeededServer(pageFolder, seed, Number(new URL(first.url).port))
    await page.getByText('The mirror does not answer').waitFor({ state: 'detached', timeout: 2000 })
    await second.close()
  })
})

describe.runIf(hasChromium)('a hidden page', () => {
  test('disconnects after a minute and asks for nothing, until somebody looks at it', async () => {
    const server = await startSeeded(createSeed())
    const page = await openPage('about:blank')
    await page.clock.install()
    await page.goto(server.url)
    await page.locator('.tile').first().waitFor()
    expect(server.countPages()).toBe(1)
    const setHidden = (hidden: boolean) =>
      page.evaluate((hidden) => {
        Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })
        document.dispatchEvent(new Event('visibilitychange'))
      }, hidden)
    await setHidden(true)
    await page.clock.fastForward(50_000)
    expect(server.countPages()).toBe(1)
    await page.clock.fastForward(11_000)
    await expect.poll(() => server.countPages()).toBe(0)
    const asked: string[] = []
    page.on('request', (request) => void asked.push(request.url()))
    await page.clock.runFor(120_000)
    expect(asked).toEqual([])
    await setHidden(false)
    await expect.poll(() => server.countPages()).toBe(1)
    expect(asked).toContain(`${server.url}/api/status`)
    expect(await textOf(page, '.state .badge')).toBe('quay.io in trouble')
  })
})

describe.runIf(hasChromium)('text of upstreams and clients', () => {
  test('is shown as text, without characters that hide or reorder it', async () => {
    const seed = createSeed()
    const hostile = '<img src=x onerror=alert(1)>'
    seed.images[0] = { ...seed.images[0]!, name: `docker.io/${hostile}:\u202e1\u0007` }
    seed.clients = [{ ...seed.clients[0]!, product: hostile, version: '"\'><script>alert(1)</script>' }]
    seed.requests = [{ ...seed.requests[0]!, repository: hostile, agent: `${hostile}\u0000`, error: '</td><h1>' }]
    seed.doctor.report = {
      ...seed.doctor.report!,
      results: [{ id: 'x', group: 'use', state: 'fail', saw: hostile, fix: { command: hostile, isOwn: false } }],
    }
    seed.status.upstreams['quay.io']!.lastError = { message: hostile, at: new Date().toISOString() }
    const { url } = await startSeeded(seed)
    const page = await openPage(url)
    let hasAlert = false
    page.on('dialog', (dialog) => {
      hasAlert = true
      void dialog.dismiss()
    })
    for (const view of ['overview', 'images', 'clients', 'log', 'doctor']) {
      await page.goto(`${url}/#/${view}`)
      await page.getByText('<img src=x').first().waitFor()
      expect(await page.locator('main img, main script, td h1').count()).toBe(0)
      // oxlint-disable-next-line no-control-regex
      expect(await page.locator('body').innerText()).not.toMatch(/[\u0000\u0007\u202e]/)
    }
    expect(hasAlert).toBe(false)
  })
})
