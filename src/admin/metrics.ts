import type { StatusReport } from './api.ts'

/** Loads what writes metrics. */
export const loadPromClient = async () => (await import('prom-client')).default

/** Renders the status as Prometheus text. */
export async function renderMetrics(report: StatusReport): Promise<{ contentType: string; text: string }> {
  const { Counter, Gauge, Registry } = await loadPromClient()
  const registry = new Registry()
  const counter = (name: string, help: string, value: number) => {
    new Counter({ name: `mirror_${name}`, help, registers: [registry] }).inc(value)
  }
  const gauge = (name: string, help: string, value: number) => {
    new Gauge({ name: `mirror_${name}`, help, registers: [registry] }).set(value)
  }
  const { cache, storage, upstreams } = report

  counter('pulls_total', 'Images that clients pulled', cache.pulls)
  counter('requests_total', 'Manifest and blob requests answered', cache.requests)
  counter('hits_total', 'Requests answered from the store', cache.hits)
  counter('misses_total', 'Requests answered from an upstream', cache.misses)
  counter('collapsed_total', 'Misses that joined a running fetch', cache.collapsed)
  counter('revalidated_total', 'Hits that were confirmed by the upstream first', cache.revalidated)
  counter('stale_served_total', 'Hits served without the upstream being able to confirm them', cache.staleServed)
  counter('errors_total', 'Requests that failed', cache.errors)
  counter('digest_mismatches_total', 'Upstream answers refused for their digest', cache.digestMismatches)
  counter('served_bytes_total', 'Body bytes sent to clients', cache.bytesServed)
  counter('upstream_bytes_total', 'Body bytes fetched from upstreams', cache.bytesFromUpstream)
  counter('saved_bytes_total', 'Body bytes that did not have to be fetched', cache.bytesSaved)
  gauge('storage_bytes', 'Bytes in the cache', storage.bytes)
  gauge('storage_max_bytes', 'The limit of the cache, 0 for none', storage.maxBytes)
  gauge('storage_blobs', 'Blobs in the cache', storage.blobs)
  gauge('registry_bytes', 'Bytes that were pushed', report.registry.bytes)
  gauge('registry_tags', 'Tags that were pushed', report.registry.tags)
  gauge('registry_damaged', 'Pushed repositories whose record is damaged', report.registry.damaged?.length ?? 0)
  gauge('registry_uploads', 'Uploads under way', report.registry.uploads)
  gauge('uptime_seconds', 'Seconds since the start', report.uptimeSeconds)

  const labelNames = ['upstream']
  const hits = new Counter({
    name: 'mirror_upstream_hits_total',
    help: 'Hits by upstream',
    labelNames,
    registers: [registry],
  })
  const misses = new Counter({
    name: 'mirror_upstream_misses_total',
    help: 'Misses by upstream',
    labelNames,
    registers: [registry],
  })
  const up = new Gauge({
    name: 'mirror_upstream_up',
    help: '1 while the upstream answers',
    labelNames,
    registers: [registry],
  })
  const left = new Gauge({
    name: 'mirror_upstream_ratelimit_remaining',
    help: 'Pulls left in the upstream quota',
    labelNames,
    registers: [registry],
  })
  for (const [upstream, counts] of Object.entries(upstreams)) {
    hits.inc({ upstream }, counts.hits)
    misses.inc({ upstream }, counts.misses)
    up.set({ upstream }, counts.state === 'ok' ? 1 : 0)
    if (counts.rateLimit) left.set({ upstream }, counts.rateLimit.remaining)
  }
  return { contentType: registry.contentType, text: await registry.metrics() }
}
