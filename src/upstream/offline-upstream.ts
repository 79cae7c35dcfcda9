import { UpstreamError, type Upstream } from './upstream.ts'

/** An upstream that is never asked (`cache.offline`): every question fails as if it were unreachable. */
export function createOfflineUpstream(upstream: Pick<Upstream, 'host' | 'identity'>): Upstream {
  const refuse = (): Promise<never> =>
    Promise.reject(
      new UpstreamError(
        'unavailable',
        503,
        `It is not cached, and the mirror is offline: ${upstream.host} is not asked.`,
      ),
    )
  return {
    host: upstream.host,
    identity: (access) => upstream.identity(access),
    resolve: refuse,
    manifest: refuse,
    statBlob: refuse,
    blob: refuse,
    tags: refuse,
    referrers: refuse,
    health: () => ({ state: 'ok', rateLimit: undefined }),
  }
}
