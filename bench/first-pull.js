// Pulls an image as a client with three connections, like docker and containerd: the manifest, the config, then the layers in
// order.
import { blobUrl, manifestUrl } from './servers.js'
import { drain } from './sink.js'

/** Resolves with the duration of the pull, seconds. @param {import('./servers.js').Running} server */
export async function pullImage(server, image, connections = 3) {
  const begun = performance.now()
  await drain([manifestUrl(server, image.tag)])
  await drain([manifestUrl(server, image.digest)])
  await drain([blobUrl(server, image.config)])
  const waiting = image.layers.values()
  const work = async () => {
    for (const layer of waiting) await drain([blobUrl(server, layer)])
  }
  await Promise.all(Array.from({ length: connections }, work))
  return (performance.now() - begun) / 1000
}
