import { loadCommandRunner } from '../lib/process.ts'
import { loadDockerode } from '../docker/dockerode.ts'
import { loadPromClient } from '../admin/metrics.ts'
import { loadUndici } from '../upstream/undici.ts'
import { loadSocks } from '../upstream/proxy.ts'

/**
 * Loads every module that a server uses after its start: `npm install` may replace or remove the package's folder while the server
 * runs. The other commands load these modules at first use. A module that the start itself loads is not in this list.
 * test/cli/preload.test.ts compares the list with the imports.
 */
export async function preload(): Promise<void> {
  // One after the other: an import opens all of its files at once, which a small limit on open files does not allow.
  await loadUndici()
  await loadSocks()
  await loadCommandRunner()
  await loadPromClient()
  await loadDockerode()
}
