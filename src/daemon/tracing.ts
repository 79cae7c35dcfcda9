import type { AdminApi, StatusReport } from '../admin/api.ts'
import { createAddressCheck } from '../admin/names.ts'
import { listImageReports } from '../admin/status.ts'
import { traceImage } from '../admin/trace/trace.ts'
import type { Config } from '../config/config.ts'
import { systemClock } from '../lib/time.ts'
import { toRegistryUrl } from '../oci/reference.ts'
import type { Parts } from './compose.ts'

/** Limits the requests in the trace of an image. */
const maxRequests = 100

interface TracingOptions {
  readonly parts: Parts
  readonly config: Config
  readonly endpoints: StatusReport['endpoints']
}

/** Implements the operations of the admin API that explain images and downloads. They read, and send no request. */
export function createTraceApi(
  { parts, config, endpoints }: TracingOptions,
  { listRequests }: Pick<AdminApi, 'listRequests'>,
): Pick<AdminApi, 'trace' | 'listDownloads'> {
  const createCheck = (urls: readonly string[]) => {
    const gateways = Object.values(endpoints.networks).map((url) => new URL(url).hostname)
    return createAddressCheck(urls, [...config.allowedHosts, ...gateways])
  }
  return {
    async trace(request) {
      const { cache, store } = await parts.cache
      const pushed = await parts.registry?.opened
      const report = await traceImage(request, {
        cache,
        store,
        pushed: pushed?.store,
        pastChanges: parts.pastChanges,
        naming: {
          isCacheAddress: createCheck(endpoints.cache),
          isRegistryAddress: createCheck(endpoints.registry),
          defaultUpstream: config.defaultUpstream,
        },
        describeUpstream: (host, isAnonymous) => {
          const { url = toRegistryUrl(host), prefix, credentials } = config.upstreams[host] ?? {}
          const credential = isAnonymous ? 'anonymous' : (credentials?.from ?? 'docker-config')
          return { url, ...(prefix !== undefined && { prefix }), credential }
        },
        listImages: () => listImageReports({ store, cache }),
        now: () => systemClock.wall(),
      })
      return { ...report, requests: await listRequests({ image: report.image, limit: maxRequests }) }
    },
    listDownloads: async () => (await parts.cache).cache.listDownloads(),
  }
}
