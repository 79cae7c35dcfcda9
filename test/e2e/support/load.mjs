// Requests one URL by many clients at once, each with its own connection: load.mjs URL CLIENTS. Prints {failures, bytes, digests} as JSON.
import { createHash } from 'node:crypto'
import { get } from 'node:http'

const [url, clients] = process.argv.slice(2)
const failures = []
const digests = new Set()
let bytes = 0

function fetchOnce() {
  return new Promise((resolve) => {
    const fail = (error) => {
      failures.push(String(error))
      resolve()
    }
    const request = get(url, { agent: false }, (response) => {
      if (response.statusCode !== 200) {
        response.resume()
        return fail(`status ${response.statusCode}`)
      }
      const hash = createHash('sha256')
      response.on('data', (chunk) => {
        bytes += chunk.length
        hash.update(chunk)
      })
      response.on('error', fail)
      response.on('end', () => {
        digests.add(`sha256:${hash.digest('hex')}`)
        resolve()
      })
    })
    request.on('error', fail)
  })
}

await Promise.all(Array.from({ length: Number(clients) }, fetchOnce))
console.log(JSON.stringify({ failures, bytes, digests: [...digests] }))
