// Serves a registry to pull from: upstream.mjs CONTENT-FOLDER ADDRESS. Talks to upstream.ts over IPC:
//   sends {port}; answers "requests" by the array of requests so far, and "close" by "closed" once no client can connect any more.
import { createReadStream, readFileSync, statSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { pipeline } from 'node:stream'

const folder = process.argv[2]
/** @type {{tags: Record<string, string>, types: Record<string, string>}} */
const { tags, types } = JSON.parse(readFileSync(join(folder, 'content.json'), 'utf8'))
const requests = []

const server = createServer((request, response) => {
  const { method, url } = request
  requests.push({ method, path: url })
  if (url === '/v2/') return response.end('{}')
  const [, name, kind, reference] = /^\/v2\/(.+)\/(manifests|blobs)\/([^/?]+)(?:\?.*)?$/.exec(url) ?? []
  const digest = kind === 'manifests' ? (tags[`${name}:${reference}`] ?? reference) : reference
  const file = join(folder, 'blobs', digest?.replace(':', '-') ?? '-')
  const size = statSync(file, { throwIfNoEntry: false })?.size
  if (size === undefined || (kind === 'manifests') !== digest in types) {
    response.writeHead(404, { 'content-type': 'application/json' })
    return response.end('{"errors":[{"code":"NOT_FOUND","message":"no such content"}]}')
  }
  const type = types[digest] ?? 'application/octet-stream'
  response.writeHead(200, { 'content-type': type, 'content-length': size, 'docker-content-digest': digest })
  if (method === 'HEAD') return response.end()
  // Ignores a client that disconnects early.
  pipeline(createReadStream(file), response, () => {})
})

process.on('message', (message) => {
  if (message === 'requests') process.send(requests)
  if (message === 'close') {
    server.close(() => process.send('closed'))
    server.closeAllConnections()
  }
})
process.on('disconnect', () => process.exit())
server.listen(0, process.argv[3], () => process.send({ port: server.address().port }))
