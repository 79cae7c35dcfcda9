import type { ContainerEngine } from '../../docker/engine.ts'
import { hostOf } from '../../docker/endpoint.ts'

/** What a user should know of an engine whose network hears all that is said to it. */
export function clearTextWarnings({
  endpoint,
  isElsewhere,
}: Pick<ContainerEngine, 'endpoint' | 'isElsewhere'>): string[] {
  if (!isElsewhere || endpoint.kind !== 'tcp' || endpoint.tlsFolder !== undefined) return []
  return [
    `the Docker engine at ${hostOf(endpoint)} is spoken to in the clear: whoever is on the way may use it, and reads what is handed over`,
  ]
}
