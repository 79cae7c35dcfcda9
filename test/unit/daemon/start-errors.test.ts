import { createServer, type AddressInfo } from 'node:net'
import { describe, expect, test } from 'vitest'
import { explainStartFailure } from '../../../src/daemon/start-errors.ts'
import { defaultConfig } from '../../../src/config/config.ts'
import { MirrorError, createSystemError } from '../../../src/lib/errors.ts'
import { ListenError } from '../../../src/server/listen.ts'

const failed = (code: string, message: string = code) => createSystemError(code, 'mkdir', message)

describe('the error of a failed start', () => {
  test('for a busy port names the program that holds it and the flag that moves the listener', async () => {
    const server = createServer()
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    const { port } = server.address() as AddressInfo
    const config = { ...defaultConfig(), admin: { listen: [{ host: '127.0.0.1', port }] } }
    const busy = new ListenError({ host: '127.0.0.1', port, cause: failed('EADDRINUSE') })
    const explained = (await explainStartFailure(busy, config)) as MirrorError
    server.close()
    expect(explained).toMatchObject({ name: 'MirrorError', exit: 1 })
    expect(explained.message).toContain(`Port ${port} (admin) is already in use by`)
    if (process.platform === 'linux') expect(explained.message).toContain(`(pid ${process.pid})`)
    expect(explained.hints[0]).toMatch(/^mirror up --admin-port \d+$/)
  })

  test.each([
    [undefined, 'another program', /^sudo (ss|lsof) .*5055.* {3}\(shows which program it is\)$/],
    [{ pid: 7, command: 'nginx' }, 'nginx (pid 7)', /^Stop nginx \(pid 7\)$/],
    [
      { pid: 7, command: 'node run.js', mirror: { home: '/a b' } },
      "another mirror (pid 7, MIRROR_HOME='/a b')",
      /^MIRROR_HOME='\/a b' mirror down /,
    ],
    [
      { pid: 7, command: 'node run.js', mirror: 'usual' as const },
      'another mirror (pid 7, without MIRROR_HOME)',
      /^env -u MIRROR_HOME mirror down /,
    ],
    [{ pid: 7, command: 'node run.js', mirror: 'unknown' as const }, 'another mirror (pid 7)', /^Set another port/],
  ])('a port that %j holds has a step that can be taken', async (holder, who, step) => {
    const busy = new ListenError({ host: '127.0.0.1', port: 5055, cause: failed('EADDRINUSE') })
    const explained = (await explainStartFailure(busy, defaultConfig(), async () => holder)) as MirrorError
    expect(explained.message).toBe(`Port 5055 (cache) is already in use by ${who}.`)
    expect(explained.hints[1]).toMatch(step)
  })

  test('for an address of another machine names the key to change', async () => {
    const config = {
      ...defaultConfig(),
      cache: { ...defaultConfig().cache, listen: [{ host: '192.0.2.1', port: 5055 }] },
    }
    const error = new ListenError({ host: '192.0.2.1', port: 5055, cause: failed('EADDRNOTAVAIL') })
    const explained = (await explainStartFailure(error, config)) as MirrorError
    expect(explained.message).toContain('192.0.2.1:5055')
    expect(explained.hints[0]).toContain('cache.listen')
  })

  test('for an unusable folder or a full disk is a MirrorError with next steps', async () => {
    for (const code of ['EACCES', 'ENOSPC', 'EROFS'])
      expect(await explainStartFailure(failed(code, `${code}: mkdir '/x'`), defaultConfig())).toMatchObject({
        name: 'MirrorError',
        message: expect.stringContaining("mkdir '/x'"),
      })
  })

  test('for any other failure is the failure itself', async () => {
    for (const error of [
      new Error('bug'),
      new MirrorError('said'),
      Object.assign(new Error('bug'), { code: 'ERR_INVALID_ARG_TYPE' }),
    ])
      expect(await explainStartFailure(error, defaultConfig())).toBe(error)
  })
})
