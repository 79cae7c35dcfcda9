import { OciError } from '../oci/errors.ts'
import type {
  PushedImageReport,
  RegistryGcRequest,
  RegistryPruneRequest,
  RemovalReport,
  RemoveRequest,
} from '../admin/api.ts'

/** What the admin listener can have done with the registry for pushed images. */
export interface RegistryActions {
  list(): Promise<PushedImageReport[]>
  remove(request: RemoveRequest): Promise<RemovalReport>
  gc(request: RegistryGcRequest): Promise<RemovalReport>
  prune(request: RegistryPruneRequest): Promise<RemovalReport>
}

/** Reads a request below `/api/registry/` and has it done. */
export function changeRegistry(
  path: '/api/registry/rm' | '/api/registry/gc' | '/api/registry/prune',
  body: Record<string, unknown>,
  registry: RegistryActions,
): Promise<RemovalReport> {
  const dryRun = body['dryRun'] === true
  switch (path) {
    case '/api/registry/rm':
      return registry.remove({ names: namesIn(body), dryRun })
    case '/api/registry/gc':
      return registry.gc({ untagged: body['untagged'] === true, grace: amountOf(body, 'grace'), dryRun })
    case '/api/registry/prune': {
      const { repository } = body
      const only = typeof repository === 'string' ? { repository } : {}
      return registry.prune({ olderThan: amountOf(body, 'olderThan'), keep: amountOf(body, 'keep'), ...only, dryRun })
    }
  }
}

/** Reads the image names of a body. Throws an OciError 400. */
export function namesIn({ names }: Record<string, unknown>): string[] {
  if (Array.isArray(names) && names.every((name): name is string => typeof name === 'string')) return names
  throw new OciError('UNKNOWN', 400, 'The body needs "names", a list of image names.')
}

function amountOf(body: Record<string, unknown>, field: string): number {
  const value = body[field]
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value
  throw new OciError('UNKNOWN', 400, `The body needs "${field}", a number.`)
}
