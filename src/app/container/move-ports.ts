import type { PublishedPort } from '../../docker/engine.ts'
import type { Endpoints } from '../../admin/state.ts'

/** The addresses of a mirror whose container was started again: the engine may have picked other free ports. */
export function movePorts(
  { cache, registry, admin, networks }: Endpoints,
  before: readonly PublishedPort[],
  now: readonly PublishedPort[],
): Endpoints {
  const move = (text: string) => {
    const url = new URL(text)
    const inside = before.find(({ outside }) => String(outside) === url.port)?.inside
    const at = now.find((port) => port.inside === inside)
    return at === undefined ? text : text.replace(/:\d+$/, `:${at.outside}`)
  }
  return { cache: cache.map(move), registry: registry.map(move), admin: admin.map(move), networks }
}
