import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { installClients } from './install-clients.ts'
import { newerClients } from './newer-clients.ts'
import { removeLeftovers, runPrefix } from './remove-leftovers.ts'
import { run } from './run.ts'

declare module 'vitest' {
  export interface ProvidedContext {
    e2e: {
      /** The reason why the real clients are not available; undefined when they are. */
      missing: string | undefined
      /** The root folder of the newer clients. */
      newer: string
      /** The prefix of this run's network namespaces and temporary folders. */
      prefix: string
    }
  }
}

/** Installs the real clients once for the run. Only the programs stay, however the run ends. */
export default async function setUp(project: TestProject): Promise<void> {
  const prefix = runPrefix(process.pid)
  const missing = await reasonToSkip()
  if (missing !== undefined) {
    console.warn(`The tests with real clients are skipped: ${missing}.`)
    project.provide('e2e', { missing, newer: '', prefix })
    return
  }
  await installClients()
  removeLeftovers()
  // Removes leftovers of an interrupted run; otherwise each test removes its own.
  process.once('exit', removeLeftovers)
  const newer = await newerClients()
  for (const root of ['', newer]) {
    for (const program of ['/usr/sbin/dockerd', '/usr/bin/containerd']) {
      console.info((await run(join(root, program), ['--version'])).trim())
    }
  }
  project.provide('e2e', { missing, newer, prefix })
}

async function reasonToSkip(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'they need root, for a network namespace and daemons of their own'
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (!/^ID=debian$/m.test(release)) return "they need Debian, for its releases' docker, podman and containerd"
  return undefined
}
