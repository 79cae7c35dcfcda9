import type { ContainerEngine } from '../docker/engine.ts'
import { inWords } from './engine-words.ts'

/** Pulls in flight get 30 s to finish. */
const stopSeconds = 40

/** Has the mirror in a container drain and end; the container stays. */
export function stopContainer({ containers }: ContainerEngine, id: string): Promise<void> {
  return inWords('The container cannot be stopped', containers.stop(id, stopSeconds))
}
