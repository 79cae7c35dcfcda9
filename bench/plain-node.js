// Serves files with a plain file stream of Node, for comparison: plain-node.js CONTENT-FOLDER. Prints its port on stdout.
import { createReadStream, statSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { pipeline } from 'node:stream'

const folder = process.argv[2]
const server = createServer((request, response) => {
  const file = join(folder, request.url)
  const size = statSync(file, { throwIfNoEntry: false })?.size
  if (size === undefined) return response.writeHead(404).end()
  response.writeHead(200, { 'content-length': size })
  pipeline(createReadStream(file), response, () => {})
})
server.listen(0, '127.0.0.1', () => process.stdout.write(String(server.address().port)))
