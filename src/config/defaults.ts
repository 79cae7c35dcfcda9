import type { Config } from './config.ts'

const second = 1000
const MiB = 1024 ** 2
const GiB = 1024 ** 3

/** The configuration of an empty mirror.yaml. A new object each time. */
export function defaultConfig(): Config {
  return {
    cache: {
      listen: [{ host: '127.0.0.1', port: 5055 }],
      maxSize: 20 * GiB,
      maxAge: 168 * 3600 * second,
      minFree: GiB,
      tagFreshness: 10 * second,
      stale: 'on-error',
      offline: false,
      verifyReads: 'auto',
      shareCredentials: false,
      prefetch: { layers: 6, rangesPerBlob: 4, rangeBytes: 32 * MiB, rangeMinSize: 128 * MiB },
      timeouts: { connect: 5 * second, headers: 10 * second, idle: 30 * second, revalidate: 3 * second },
    },
    registry: {
      enabled: true,
      listen: [{ host: '127.0.0.1', port: 5001 }],
      deletes: true,
      networks: 'read',
      auth: undefined,
    },
    admin: { listen: [{ host: '127.0.0.1', port: 5056 }] },
    networks: ['kind'],
    allowedHosts: [],
    log: { level: 'info' },
    upstreams: {},
    defaultUpstream: 'docker.io',
    tls: undefined,
  }
}
