import { createRequire } from 'node:module'
import type { Page } from 'playwright-core'
import { afterAll, describe, expect, test } from 'vitest'
import { closeBrowser, hasChromium, openPage, startSeeded } from './support/browser.ts'
import { createEmptySeed, createSeed } from './support/seed.ts'

afterAll(closeBrowser)

const views = ['overview', 'images', 'pushed', 'clients', 'log', 'doctor'] as const
const axe = createRequire(import.meta.url).resolve('axe-core/axe.min.js')

interface Violation {
  readonly id: string
  readonly impact: string
  readonly nodes: readonly { readonly html: string }[]
}

interface Findings {
  readonly passes: readonly unknown[]
  readonly violations: readonly Violation[]
}

async function findViolations(page: Page): Promise<string[]> {
  const found = await page.evaluate<Findings>(
    `axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })`,
  )
  expect(found.passes.length).toBeGreaterThan(10)
  return found.violations.map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes[0]?.html}`)
}

/** Opens the page with axe, which is outside of its content security policy. */
async function openForAxe(url: string, colorScheme: 'light' | 'dark'): Promise<Page> {
  const page = await openPage(url, { colorScheme, bypassCSP: true })
  await page.addScriptTag({ path: axe })
  return page
}

describe.runIf(hasChromium)('a reader who does not see or point', () => {
  test.each(['light', 'dark'] as const)('meets no barrier that axe knows of in the %s theme', async (colorScheme) => {
    const { url } = await startSeeded({ ...createSeed(), secret: 'secret' })
    const page = await openForAxe(url, colorScheme)
    for (const view of views) {
      await page.goto(`${url}/#/${view}`)
      await page.locator('main .panel').first().waitFor()
      await page.waitForTimeout(200)
      expect(await findViolations(page), view).toEqual([])
    }
    await page.goto(`${url}/#/images`)
    await page.getByRole('button', { name: 'Remove: docker.io/library/redis:7.4' }).click()
    await page.locator('.names').waitFor()
    expect(await findViolations(page), 'the dialog').toEqual([])
  })

  test.each(['light', 'dark'] as const)('meets no barrier on an empty mirror in the %s theme', async (colorScheme) => {
    const { url } = await startSeeded(createEmptySeed())
    const page = await openForAxe(url, colorScheme)
    await page.locator('.first').waitFor()
    expect(await findViolations(page)).toEqual([])
  })

  test('reaches everything with the keyboard, and sees where the focus is', async () => {
    const { url } = await startSeeded({ ...createSeed(), secret: 'secret' })
    const page = await openPage(`${url}/#/images`)
    await page.getByRole('table', { name: 'Images' }).waitFor()
    const read = () =>
      page.evaluate(() => {
        const element = document.activeElement as HTMLElement
        const { outlineStyle, outlineWidth } = getComputedStyle(element)
        const name = element.getAttribute('aria-label') ?? element.innerText.trim()
        return { name, isVisible: outlineStyle !== 'none' && outlineWidth !== '0px' }
      })
    const walked: string[] = []
    for (let step = 0; step < 22; step += 1) {
      await page.keyboard.press('Tab')
      const { name, isVisible } = await read()
      expect(isVisible, name).toBe(true)
      walked.push(name)
    }
    expect(walked).toEqual([
      'Skip to content',
      'Overview',
      'Images',
      'Pushed',
      'Clients',
      'Log',
      'Doctor',
      'Go offline',
      'Theme: auto',
      'Prune now',
      'Search Images',
      'Image',
      'Size',
      'Pulls',
      'Saved',
      'Last pull',
      'Tag age',
      'Checked',
      'Next out',
      'Check: docker.io/library/redis:7.4',
      'Remove: docker.io/library/redis:7.4',
      'Check: docker.io/library/postgres:17',
    ])
  })

  test('stays in a dialog until it is closed, and returns to the button that opened it', async () => {
    const { url, changes } = await startSeeded({ ...createSeed(), secret: 'secret' })
    const page = await openPage(`${url}/#/images`)
    const button = page.getByRole('button', { name: 'Remove: docker.io/library/redis:7.4' })
    await button.focus()
    await page.keyboard.press('Enter')
    await page.locator('.names').waitFor()
    for (let step = 0; step < 6; step += 1) {
      await page.keyboard.press('Tab')
      const isInside = await page.evaluate(() => {
        const { activeElement } = document
        return activeElement === document.body || activeElement?.closest('dialog') !== null
      })
      expect(isInside).toBe(true)
    }
    await page.keyboard.press('Escape')
    await page.locator('dialog').waitFor({ state: 'detached' })
    expect(await button.evaluate((element) => element === document.activeElement)).toBe(true)
    expect(changes).toEqual([{ path: '/api/cache/rm', body: { names: ['docker.io/library/redis:7.4'], dryRun: true } }])
  })
})

/** Adds the longest texts that clients, upstreams and checks may send, without a place to break them. */
function createLongSeed() {
  const seed = { ...createSeed(), secret: 'secret' }
  const repository = `${'a'.repeat(120)}/${'b'.repeat(100)}`
  seed.images.push({ ...seed.images[0]!, name: `registry.example.com:8443/${repository}:${'t'.repeat(128)}` })
  seed.pushed.push({ ...seed.pushed[0]!, name: `${repository}:v1` })
  const address = '2001:db8:85a3:1234:5678:8a2e:370:7334'
  seed.clients.push({ ...seed.clients[0]!, address, product: 'x'.repeat(180), version: '9'.repeat(60) })
  seed.requests.unshift({
    ...seed.requests[0]!,
    id: 'long',
    repository,
    agent: 'y'.repeat(200),
    error: 'z'.repeat(300),
  })
  const finding = { group: 'clients', state: 'fail', saw: 'w'.repeat(300) } as const
  const fix = { command: `mirror configure ${'c'.repeat(200)}`, isOwn: false }
  const report = seed.doctor.report!
  const results = [{ ...finding, id: `clients.${'q'.repeat(90)}`, fix }, ...report.results]
  seed.doctor.report = { ...report, results }
  seed.status.upstreams['quay.io']!.lastError = { message: 'e'.repeat(400), at: new Date().toISOString() }
  return seed
}

/** Returns by how many pixels the page or a table is wider than its place. */
const measureExcess = (page: Page) =>
  page.evaluate(() =>
    Math.max(
      ...[document.documentElement, ...document.querySelectorAll('.scroll')].map(
        (element) => element.scrollWidth - element.clientWidth,
      ),
    ),
  )

describe.runIf(hasChromium)('the layout', () => {
  test.each([360, 1280])('breaks the longest texts at %i px, and leaves short words whole', async (width) => {
    const { url } = await startSeeded(createLongSeed())
    const page = await openPage(url, { viewport: { width, height: 800 } })
    for (const view of views) {
      await page.goto(`${url}/#/${view}`)
      await page.locator('main .panel').first().waitFor()
      await page.waitForTimeout(100)
      expect(await measureExcess(page), view).toBeLessThanOrEqual(0)
      const broken = await page.evaluate(() => {
        const texts = document.createTreeWalker(document.querySelector('main')!, NodeFilter.SHOW_TEXT)
        const found: string[] = []
        while (texts.nextNode()) {
          const { currentNode } = texts
          const text = currentNode.textContent ?? ''
          const range = document.createRange()
          range.selectNodeContents(currentNode)
          // The names of images may break everywhere.
          if (currentNode.parentElement?.closest('.image')) continue
          if (text.length < 20 && !text.includes(' ') && range.getClientRects().length > 1) found.push(text)
        }
        return found
      })
      expect(broken, view).toEqual([])
    }
  })

  test('shows with forced colours how far a download is, which range is chosen, and the colours of the charts', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url, { forcedColors: 'active' })
    const bars = page.locator('.downloads progress')
    await bars.nth(1).waitFor()
    expect(await bars.nth(0).screenshot()).not.toEqual(await bars.nth(1).screenshot())
    const readBackground = (selector: string) =>
      page
        .locator(selector)
        .first()
        .evaluate((element) => getComputedStyle(element).backgroundColor)
    const chosen = await readBackground('.segments [aria-pressed=true]')
    expect(chosen).not.toBe(await readBackground('.segments [aria-pressed=false]'))
    const keys = await page
      .locator('.legend i')
      .evaluateAll((elements) => elements.map((element) => getComputedStyle(element).backgroundColor))
    expect(new Set(keys.slice(0, 3)).size).toBe(3)
  })

  test.each([360, 768, 1440, 2560])('has no horizontal scroll at %i px', async (width) => {
    const { url } = await startSeeded({ ...createSeed(), secret: 'secret' })
    const page = await openPage(url, { viewport: { width, height: 800 } })
    for (const view of views) {
      await page.goto(`${url}/#/${view}`)
      await page.locator('main .panel').first().waitFor()
      await page.waitForTimeout(100)
      expect(await measureExcess(page), view).toBeLessThanOrEqual(0)
    }
  })

  test('keeps the theme that a button chooses', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url, { colorScheme: 'light' })
    const readBackground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    await page.locator('.tile').first().waitFor()
    const light = await readBackground()
    await page.getByRole('button', { name: 'Theme: auto' }).click()
    await page.getByRole('button', { name: 'Theme: light' }).click()
    await page.getByRole('button', { name: 'Theme: dark' }).waitFor()
    expect(await readBackground()).not.toBe(light)
    await page.reload()
    await page.getByRole('button', { name: 'Theme: dark' }).waitFor()
    expect(await readBackground()).not.toBe(light)
  })

  test('moves nothing for a reader who wants no motion', async () => {
    const { url } = await startSeeded(createSeed())
    const page = await openPage(url, { reducedMotion: 'reduce' })
    await page.locator('.tile').first().waitFor()
    const moving = await page.evaluate(
      () =>
        [...document.querySelectorAll('*')].filter((element) => {
          const { transitionDuration, animationName } = getComputedStyle(element)
          return transitionDuration !== '0s' || animationName !== 'none'
        }).length,
    )
    expect(moving).toBe(0)
  })
})
