// Runs the parts of dockerd that a reload needs: node dockerd.mjs SOCKET DAEMON.JSON [--flags]
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'

const [socket, file] = process.argv.slice(2)
let mirrors = []

/** Reads the mirrors as dockerd does: a missing key changes nothing, and a broken file is only reported. */
function load() {
  try {
    mirrors = JSON.parse(readFileSync(file, 'utf8'))['registry-mirrors'] ?? mirrors
  } catch (error) {
    console.error(error)
  }
}

load()
process.on('SIGHUP', load)
process.on('SIGTERM', () => process.exit())
createServer((request, response) => {
  const answer = request.url.startsWith('/version')
    ? { Version: '20.10.24', Components: [{ Name: 'Engine' }] }
    : { ServerVersion: '20.10.24', RegistryConfig: { Mirrors: mirrors.map((mirror) => `${mirror}/`) } }
  response.setHeader('content-type', 'application/json').end(JSON.stringify(answer))
}).listen(socket, () => process.send('listening'))
