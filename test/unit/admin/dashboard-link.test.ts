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

  test('holds two browsers at a time, because each connection takes memory of the container', async () => {
    const mirror = await startTestMirror()
    const { port } = new URL(mirror.adminUrl)
    let opened = 0
    const forwarding = await forwardConnections({
      name: 'ssh://me@there',
      async connect() {
        opened += 1
        return connect(Number(port))
      },
    })
    onTestFinished(() => forwarding.close())
    const sockets = Array.from({ length: 14 }, () => connect(forwarding.port))
    let refused = 0
    for (const socket of sockets) socket.on('error', () => {}).once('close', () => (refused += 1))
    await expect.poll(() => [opened, refused]).toEqual([12, 2])
    sockets.forEach((socket) => socket.destroy())
    await expect.poll(async () => (await get(`http://127.0.0.1:${forwarding.port}`, '/healthz')).status).toBe(200)
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
