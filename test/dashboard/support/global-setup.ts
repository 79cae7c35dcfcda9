import { existsSync } from 'node:fs'
import type { TestProject } from 'vitest/node'
import { findChromium, installChromium } from './chromium.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    /** The path of Chromium; empty when there is none. */
    chromium: string
  }
}

/** Finds Chromium, and installs it on Debian as root when it is missing. */
export default async function setUp(project: TestProject): Promise<void> {
  if (!existsSync('dist/dashboard/index.html')) throw new Error('There is no built dashboard. Run: npm run build')
  const chromium = findChromium() ?? (await installChromium())
  if (chromium === undefined) console.warn('The tests of the dashboard are skipped: there is no Chromium.')
  project.provide('chromium', chromium ?? '')
}
