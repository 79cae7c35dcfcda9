import { readFile, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { installClients } from './install-clients.ts'
import { removeNetworkNamespace } from './network-namespace.ts'
import { newerClients } from './newer-clients.ts'
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

/** Gets the real clients, once for the whole run; what a broken-off test may have left is taken away at the end. */
export default async function setUp(project: TestProject): Promise<() => Promise<void>> {
  const prefix = `mirror-e2e-${process.pid}-`
  const missing = await reasonToSkip()
  if (missing !== undefined) {
    console.warn(`The tests with real clients are skipped: ${missing}.`)
    project.provide('e2e', { missing, newer: '', prefix })
    return async () => {}
  }
  await installClients()
  const newer = await newerClients()
  for (const root of ['', newer]) {
    for (const program of ['/usr/sbin/dockerd', '/usr/bin/containerd']) {
      console.info((await run(join(root, program), ['--version'])).trim())
    }
  }
  project.provide('e2e', { missing, newer, prefix })
  return () => removeLeftovers(prefix)
}

async function reasonToSkip(): Promise<string | undefined> {
  if (process.getuid?.() !== 0) return 'they need root, for a network namespace and daemons of their own'
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (!/^ID=debian$/m.test(release)) return "they need Debian, for its releases' docker, podman and containerd"
  return undefined
}

async function removeLeftovers(prefix: string): Promise<void> {
  const names = (await run('ip', ['netns', 'list'])).split('\n').map((line) => line.split(' ')[0]!)
  for (const name of names.filter((name) => name.startsWith(prefix))) await removeNetworkNamespace(name)
  const folders = (await readdir(tmpdir())).filter((name) => name.startsWith(prefix))
  for (const name of folders) await rm(join(tmpdir(), name), { recursive: true, force: true })
}
