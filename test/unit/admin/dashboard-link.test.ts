import { connect } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { forwardConnections } from '../../../src/admin/dashboard/link.ts'
import { findBrowserProgram } from '../../../src/lib/process.ts'
import { fetchTicket } from '../../support/dashboard.ts'
import { get } from '../../support/get.ts'
import { startTestMirror } from '../../support/mirror.ts'

describe('the forwarding to a mirror on another machine', () => {
  test('lets a browser begin a session at the local address', async () => {
    const mirror = await startTestMirror()
    const { port } = new URL(mirror.adminUrl)
    const forwarding = await forwardConnections({ name: 'ssh://me@there', connect: async () => connect(Number(port)) })
    onTestFinished(() => forwarding.close())
    const local = `http://127.0.0.1:${forwarding.port}`
    expect((await get(local, '/api/status')).status).toBe(200)
    const answer = await get(local, '/api/session', {
      method: 'POST',
      headers: { origin: local, 'content-type': 'application/json' },
      body: JSON.stringify({ ticket: await fetchTicket(mirror) }),
    })
    expect(answer.status).toBe(200)
  })

  test('ends a connection that the engine refuses, and all others when it is closed', async () => {
    const mirror = await startTestMirror()
    const { port } = new URL(mirror.adminUrl)
    let isUp = false
    const forwarding = await forwardConnections({
      name: 'ssh://me@there',
      async connect() {
        if (!isUp) throw new Error('no engine')
        return connect(Number(port))
      },
    })
    const local = `http://127.0.0.1:${forwarding.port}`
    await expect(get(local, '/api/status')).rejects.toThrow()
    isUp = true
    const socket = connect(forwarding.port)
    const closed = new Promise((resolve) => socket.once('close', resolve))
    socket.on('error', () => {})
    await new Promise((resolve) => socket.once('connect', resolve))
    forwarding.close()
    await closed
  })
})

test.each([
  ['darwin', {}, ['open', 'URL']],
  ['win32', {}, ['rundll32', 'url.dll,FileProtocolHandler', 'URL']],
  ['linux', { DISPLAY: ':0' }, ['xdg-open', 'URL']],
  ['linux', { WAYLAND_DISPLAY: 'wayland-0' }, ['xdg-open', 'URL']],
  ['linux', { WSL_DISTRO_NAME: 'Debian' }, ['rundll32.exe', 'url.dll,FileProtocolHandler', 'URL']],
  ['linux', {}, undefined],
  ['linux', { DISPLAY: '' }, undefined],
  ['linux', { DISPLAY: ':0', SUDO_UID: '1000' }, undefined],
  ['freebsd', { DISPLAY: ':0' }, ['xdg-open', 'URL']],
])('on %s with %j, the browser is opened by %j', (platform, env, expected) => {
  expect(findBrowserProgram('URL', { platform, env })).toEqual(expected)
})
