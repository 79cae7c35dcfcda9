import { request } from 'node:http'
import { manifestAccept, outlineManifest } from '../../oci/content.ts'
import { type Digest, digestOf } from '../../oci/digest.ts'

/** One pull, measured. */
export interface Pull {
  readonly milliseconds: number
  readonly requests: number
  readonly bytes: number
}

interface Answer {
  readonly bytes: Buffer
  readonly contentType: string
}

/**
 * Pulls an image as containerd does: HEAD of the tag, the index and one manifest by digest, config and layers, three at once.
 * `base` is the registry's URL. Every byte is checked against its digest.
 */
export async function pullImage(base: string, repository: string, tag: string): Promise<Pull> {
  const begun = performance.now()
  let requests = 0
  let bytes = 0
  const ask = async (method: string, path: string): Promise<Answer & { digest: string | undefined }> => {
    requests += 1
    const answer = await send(method, `${base}/v2/${repository}/${path}`)
    bytes += answer.bytes.length
    return answer
  }
  const get = async (kind: 'manifests' | 'blobs', digest: Digest): Promise<Answer> => {
    const answer = await ask('GET', `${kind}/${digest}`)
    if (digestOf(answer.bytes) !== digest) throw new Error(`${digest} came with other bytes`)
    return answer
  }
  const links = async (digest: Digest) => {
    const manifest = await get('manifests', digest)
    const outline = await outlineManifest(manifest.bytes, manifest.contentType)
    if (typeof outline === 'string') throw new Error(`${digest} is no manifest`)
    return outline.links
  }

  const head = await ask('HEAD', `manifests/${tag}`)
  const [platform] = await links(head.digest as Digest)
  const wanted = (await links(platform!.digest)).values()
  const fetchInTurn = async () => {
    for (const { digest } of wanted) await get('blobs', digest)
  }
  await Promise.all([fetchInTurn(), fetchInTurn(), fetchInTurn()])
  return { milliseconds: performance.now() - begun, requests, bytes }
}

function send(method: string, url: string): Promise<Answer & { digest: string | undefined }> {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      url,
      { method, headers: { accept: manifestAccept, 'user-agent': 'mirror-demo' } },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('error', reject)
        response.on('end', () => {
          if (response.statusCode !== 200)
            return reject(new Error(`${method} ${url} was answered ${response.statusCode}`))
          const digest = response.headers['docker-content-digest']
          resolve({
            bytes: Buffer.concat(chunks),
            contentType: response.headers['content-type'] ?? '',
            digest: typeof digest === 'string' ? digest : undefined,
          })
        })
      },
    )
    outgoing.on('error', reject)
    outgoing.end()
  })
}
