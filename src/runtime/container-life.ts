import { homedir } from 'node:os'
import { MirrorError } from '../lib/errors.ts'
import { findDockerEndpoint } from './docker-endpoint.ts'
import { isHealthy } from './health.ts'
import type { ContainerPlace, Endpoints } from './runtime.ts'

/**
 * Whether a container's mirror is there. One that answers needs no engine to be asked, which spares half a second; one that
 * does not may be just starting, and then it runs.
 */
export async function isContainerUp({ id, instance }: ContainerPlace, { admin }: Endpoints): Promise<boolean> {
  const [url] = admin
  // Another mirror may have the port by now, and it must not be taken for this one.
  if (url !== undefined && instance !== undefined && (await isHealthy(url, { instance }))) return true
  const endpoint = await findDockerEndpoint({ platform: process.platform, env: process.env, homedir: homedir() })
  if (endpoint === undefined) return false
  try {
    const { openContainerEngine } = await import('./dockerode-container-engine.ts')
    const { containers } = await openContainerEngine(endpoint)
    const found = await containers.find(id)
    return found?.running === true || found?.restarting === true
  } catch (error) {
    // Without an engine there is no container either.
    if (error instanceof MirrorError) return false
    throw error
  }
}
