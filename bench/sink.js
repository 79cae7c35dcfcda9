// Receives bodies and counts only their bytes, so that the client uses as little of the machine as possible.
import { connect } from 'node:net'
import { manifestType } from './content.js'

/**
 * Gets each URL in order on one connection. Resolves with the duration, seconds.
 * @param {readonly string[]} urls of one server, each answered with a Content-Length
 */
export function drain(urls) {
  const { hostname, port, host } = new URL(urls[0])
  const begun = performance.now()
  return new Promise((resolve, reject) => {
    const waiting = urls.map((url) => new URL(url).pathname)
    let head = ''
    let left = 0
    const ask = () => {
      const path = waiting.shift()
      if (path === undefined) {
        resolve((performance.now() - begun) / 1000)
        return socket.destroy()
      }
      socket.write(`GET ${path} HTTP/1.1\r\nHost: ${host}\r\nAccept: ${manifestType}\r\n\r\n`)
    }
    const take = (count, buffer) => {
      if (left === 0) {
        head += buffer.toString('latin1', 0, Math.min(count, 4096))
        const end = head.indexOf('\r\n\r\n')
        if (end === -1) return true
        if (!head.startsWith('HTTP/1.1 200')) reject(new Error(head.slice(0, 200)))
        left = Number(/\r\ncontent-length: (\d+)/i.exec(head)[1]) + end + 4
        head = ''
      }
      left -= count
      if (left === 0) ask()
      return true
    }
    const buffer = Buffer.allocUnsafeSlow(1024 * 1024)
    const socket = connect({ host: hostname, port: Number(port), onread: { buffer, callback: take } }, ask)
    socket.once('error', reject)
    socket.once('close', () => reject(new Error(`${host} hung up`)))
  })
}
