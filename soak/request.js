// Sends one HTTP request and reports its outcome; failures of the server or the network do not throw.
import { createHash } from 'node:crypto'
import { request as send } from 'node:http'

/**
 * @typedef {object} Outcome
 * @property {number} status 0 when no response arrived
 * @property {Record<string, string>} headers
 * @property {boolean} complete true when the whole announced body arrived
 * @property {string} digest of the received bytes of the body
 * @property {number} size of the received bytes of the body
 * @property {Buffer | undefined} body only with `keepBody`
 * @property {string | undefined} error
 */

/** Sockets whose late errors are caught. @type {WeakSet<import('node:net').Socket>} */
const guarded = new WeakSet()

/**
 * @param {string} url
 * @param {{ method?: string, headers?: Record<string, string | number>, body?: Buffer, agent?: import('node:http').Agent,
 *   keepBody?: boolean, leaveAfter?: number, pauseMs?: number, timeoutMs?: number }} [options] `leaveAfter`: the client
 *   closes the connection after so many bytes; `pauseMs`: the client waits so long before it reads the next part.
 * @returns {Promise<Outcome>}
 */
export function request(url, options = {}) {
  const { method = 'GET', headers = {}, body, agent, keepBody = false, leaveAfter, pauseMs = 0 } = options
  return new Promise((resolve) => {
    const hash = createHash('sha256')
    const chunks = []
    const outcome = { status: 0, headers: {}, complete: false, digest: '', size: 0, body: undefined, error: undefined }
    const settle = (error) => {
      clearTimeout(late)
      if (outcome.digest !== '') return
      outcome.error = error
      outcome.digest = `sha256:${hash.digest('hex')}`
      if (keepBody) outcome.body = Buffer.concat(chunks)
      resolve(outcome)
    }
    const length = body ? { 'content-length': body.length } : {}
    const sent = send(url, { method, agent, headers: { ...length, ...headers } }, (response) => {
      outcome.status = response.statusCode
      outcome.headers = response.headers
      response.on('data', (chunk) => {
        if (outcome.digest !== '') return
        outcome.size += chunk.length
        hash.update(chunk)
        if (keepBody) chunks.push(chunk)
        if (leaveAfter !== undefined && outcome.size >= leaveAfter) {
          sent.destroy()
          settle('left')
        } else if (pauseMs > 0) {
          response.pause()
          setTimeout(() => response.resume(), pauseMs)
        }
      })
      response.on('end', () => {
        outcome.complete = response.complete
        settle()
      })
      response.on('error', (error) => settle(error.code ?? error.message))
      response.on('close', () => settle('closed'))
    })
    const late = setTimeout(() => {
      sent.destroy()
      settle('late')
    }, options.timeoutMs ?? 90_000)
    sent.on('error', (error) => settle(error.code ?? error.message))
    // Ignore late errors of the socket, because a response may arrive before its request is sent.
    sent.on('socket', (socket) => {
      if (!guarded.has(socket)) socket.on('error', () => {})
      guarded.add(socket)
    })
    sent.end(body)
  })
}
