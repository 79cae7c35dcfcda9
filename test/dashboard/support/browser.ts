import { fileURLToPath } from 'node:url'
import { type Browser, chromium, type BrowserContextOptions, type LaunchOptions, type Page } from 'playwright-core'
import { expect, inject, onTestFinished } from 'vitest'
import type { Seed } from './seed.ts'
import { type SeededServer, startSeededServer } from './seeded-server.ts'

/** Is false where the tests cannot run. */
export const hasChromium = inject('chromium') !== ''

/** The folder of the built page. */
export const pageFolder = fileURLToPath(new URL('../../../dist/dashboard', import.meta.url))

let shared: Promise<Browser> | undefined

/** Starts Chromium; without arguments once for all tests of a file. */
export function launch(args: readonly string[] = []): Promise<Browser> {
  const options: LaunchOptions = { executablePath: inject('chromium'), args: ['--no-sandbox', ...args] }
  if (args.length > 0) return chromium.launch(options)
  return (shared ??= chromium.launch(options))
}

export async function closeBrowser(): Promise<void> {
  await (await shared)?.close()
  shared = undefined
}

export interface OpenOptions extends BrowserContextOptions {
  readonly browser?: Browser
  /** Messages of the console that the test expects. */
  readonly expected?: RegExp
}

/**
 * Opens a page in a context of its own. The test fails when the page violates its content security policy, throws, or writes an error
 * to the console.
 */
export async function openPage(url: string, { browser, expected, ...options }: OpenOptions = {}): Promise<Page> {
  const context = await (browser ?? (await launch())).newContext(options)
  const problems: string[] = []
  await context.exposeFunction('reportViolation', (text: string) => void problems.push(text))
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI }) => {
      const { reportViolation } = window as unknown as { reportViolation: (text: string) => void }
      reportViolation(`${violatedDirective}: ${blockedURI}`)
    })
  })
  const page = await context.newPage()
  page.on('pageerror', (error) => problems.push(error.message))
  page.on('console', (message) => {
    if (message.type() === 'error' && !expected?.test(message.text())) problems.push(message.text())
  })
  onTestFinished(async () => {
    await context.close()
    expect(problems).toEqual([])
  })
  await page.goto(url)
  return page
}

/** Serves the page with made-up data until the test ends. */
export async function startSeeded(seed: Seed): Promise<SeededServer> {
  const server = await startSeededServer(pageFolder, seed)
  onTestFinished(() => server.close())
  return server
}

/** Returns the texts of a column of the only table with this caption, top to bottom. */
export async function readColumn(page: Page, caption: string, head: string): Promise<string[]> {
  return page.getByRole('table', { name: caption }).evaluate((table, head) => {
    const heads = [...table.querySelectorAll('thead th')].map((cell) => cell.textContent?.trim())
    const index = heads.indexOf(head)
    return [...table.querySelectorAll('tbody tr')].map((row) => row.children[index]?.textContent?.trim() ?? '')
  }, head)
}
