// Serves a distant registry: shaped-upstream.js CONTENT-FOLDER LATENCY-MS BYTES-A-SECOND. Each response begins after the latency,
// and each connection carries so many bytes a second. Prints its port on stdout.
import { open } from 'node:fs/promises'
import { createServer } from 'node:http'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { manifestType } from './content.js'

const [folder, latency, pace] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])]
const step = 128 * 1024

const server = createServer({ noDelay: true }, (request, response) => {
  answer(request, response).catch(() => response.destroy())
})

async function answer(request, response) {
  await sleep(latency)
  const { pathname } = new URL(request.url, 'http://localhost')
  if (pathname === '/v2/') return response.end('{}')
  const file = await open(join(folder, pathname)).catch(() => undefined)
  if (!file) return response.writeHead(404).end()
  try {
    const { size } = await file.stat()
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? []
    const start = Number(first ?? 0)
    const end = last ? Math.min(Number(last), size - 1) : size - 1
    const isManifest = pathname.includes('/manifests/')
    response.writeHead(first === undefined ? 200 : 206, {
      'content-type': isManifest ? manifestType : 'application/octet-stream',
      'content-length': end + 1 - start,
      'accept-ranges': 'bytes',
      ...(basename(pathname).startsWith('sha256:') ? { 'docker-content-digest': basename(pathname) } : {}),
      ...(first === undefined ? {} : { 'content-range': `bytes ${start}-${end}/${size}` }),
    })
    if (request.method === 'HEAD') return response.end()
    const begun = performance.now()
    for (let at = start; at <= end && !response.destroyed; at += step) {
      const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(step), 0, Math.min(step, end + 1 - at), at)
      response.write(buffer.subarray(0, bytesRead))
      const due = begun + ((at + bytesRead - start) / pace) * 1000
      if (due > performance.now() + 1) await sleep(due - performance.now())
    }
    response.end()
  } finally {
    await file.close()
  }
}

server.listen(0, '127.0.0.1', 1024, () => process.stdout.write(String(server.address().port)))
