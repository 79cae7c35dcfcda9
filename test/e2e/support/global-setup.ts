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
      /** Why the real clients cannot be had here; undefined when they are here. */
      missing: string | undefined
      /** The newer clients' folder that stands for `/`. */
      newer: string
      /** Names of this run's network namespaces and temporary folders begin so. */
      prefix: string
    }
  }
}

/** Gets the real clients, once for the whole run. However it ends, nothing of it stays but the programs. */
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
  // Tests clean up after themselves, but not when the run is interrupted.
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
