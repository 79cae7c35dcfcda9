import type { AdminApi, RegistryApi, StatusReport } from '../admin/api.ts'
import { createCacheApi, createRegistryApi } from '../admin/local.ts'
import { renderMetrics } from '../admin/status.ts'
import { OciError } from '../oci/errors.ts'
import type { Parts } from './compose.ts'

interface ServerActions {
  readonly status: () => Promise<StatusReport>
  /** Begins to drain and end the server. */
  readonly stop: () => void
}

/** Implements the admin API with the parts of the running server. */
export function createServerAdminApi(parts: Parts, { status, stop }: ServerActions): AdminApi {
  const { evictor, cache, store, pushed, ownTroubles, probeImages } = parts
  return {
    troubles: () => ownTroubles.find(),
    status,
    metrics: async () => renderMetrics(await status()),
    cache: createCacheApi(store, evictor, () => cache.clearMemory()),
    registry: pushed ? createRegistryApi(pushed.store, pushed.maintenance) : disabledRegistry,
    async offerProbeImage() {
      const { id, repository, tag, image } = probeImages.offer()
      return { id, repository, tag, digest: image.digest }
    },
    async endProbeImage(id) {
      const probeImage = probeImages.end(id)
      if (!probeImage) throw new OciError('UNKNOWN', 404, 'No such image is offered.')
      const { requestsByHost: seen, repository } = probeImage
      // The cache stored it like any other image.
      await evictor.remove(
        [...seen.keys()].map((host) => `${host}/${repository}`),
        false,
      )
      cache.clearMemory()
      return { seen: Object.fromEntries(seen) }
    },
    stop: async () => stop(),
  }
}

async function refuse(): Promise<never> {
  throw new OciError('UNSUPPORTED', 404, 'The registry is switched off: "registry.enabled" in mirror.yaml.')
}

const disabledRegistry: RegistryApi = { list: refuse, damaged: refuse, remove: refuse, gc: refuse, prune: refuse }
