import { homedir } from 'node:os'
import { type DockerEndpoint, findDockerEndpoint, hostOf } from '../docker/endpoint.ts'
import { MirrorError } from '../lib/errors.ts'
import { isHealthy } from './health.ts'
import type { ContainerPlace, Endpoints } from './runtime.ts'

/**
 * Whether a container's mirror is there. One that answers needs no engine to be asked, which spares half a second; one that
 * does not may be just starting, and then it runs. Throws a MirrorError when its engine is another machine's and cannot be
 * asked: then nobody knows.
 */
export async function isContainerUp(place: ContainerPlace, { admin }: Endpoints): Promise<boolean> {
  const { id, instance, engine, elsewhere } = place
  const [url] = admin
  // Another mirror may have the port by now, and it must not be taken for this one.
  const isHere = elsewhere === undefined && url !== undefined && instance !== undefined
  if (isHere && (await isHealthy(url, { instance }))) return true
  const endpoint =
    engine ?? (await findDockerEndpoint({ platform: process.platform, env: process.env, homedir: homedir() }))
  if (endpoint === undefined) return false
  try {
    return await runs(endpoint, id)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    // Without an engine on this machine there is no container either.
    if (elsewhere === undefined) return false
    const { message, exit, hints } = error
    throw new MirrorError(`The mirror is in a container on ${hostOf(endpoint)}. ${message}`, {
      exit,
      hints,
      cause: error,
    })
  }
}

async function runs(endpoint: DockerEndpoint, id: string): Promise<boolean> {
  const { openContainerEngine } = await import('../docker/dockerode-engine.ts')
  const { containers } = await openContainerEngine(endpoint)
  const found = await containers.find(id)
  return found?.running === true || found?.restarting === true
}
