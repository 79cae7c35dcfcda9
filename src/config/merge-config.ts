import type { Config } from './config.ts'
import type { ConfigLayer } from './settings.ts'

/** The configuration with the layer's keys in place of its own. Lists and upstreams are replaced whole. */
export function mergeConfig(base: Config, layer: ConfigLayer): Config {
  return {
    ...base,
    ...layer,
    cache: {
      ...base.cache,
      ...layer.cache,
      prefetch: { ...base.cache.prefetch, ...layer.cache?.prefetch },
      timeouts: { ...base.cache.timeouts, ...layer.cache?.timeouts },
    },
    registry: { ...base.registry, ...layer.registry },
    admin: { ...base.admin, ...layer.admin },
    log: { ...base.log, ...layer.log },
  }
}
