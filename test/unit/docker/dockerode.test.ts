import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createDockerEngine } from '../../../src/docker/dockerode-engine.ts'
import { startConfigurableEngine } from '../../support/configurable-engine.ts'

let folder: string
let socket: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  socket = join(folder, 'docker.sock')
})
afterEach(() => rm(folder, { recursive: true }))

const engineHere = () => createDockerEngine({ kind: 'socket', path: socket })

describe('the information about a Docker engine', () => {
  test('is undefined when no engine answers', async () => {
    expect(await engineHere().findInfo()).toBeUndefined()
  })

  test('has the version, the image store, mirrors and insecure registries', async () => {
    await startConfigurableEngine(socket, {
      info: {
        ServerVersion: '28.5.2',
        DriverStatus: [['driver-type', 'io.containerd.snapshotter.v1']],
        SecurityOptions: ['name=seccomp,profile=builtin', 'name=rootless'],
        RegistryConfig: {
          Mirrors: ['http://127.0.0.1:5055/'],
          InsecureRegistryCIDRs: ['127.0.0.0/8'],
          IndexConfigs: { 'docker.io': { Secure: true }, 'a.example:5000': { Secure: false } },
        },
      },
    })
    expect(await engineHere().findInfo()).toEqual({
      version: '28.5.2',
      operatingSystem: 'Debian',
      architecture: '',
      os: '',
      logDriver: '',
      hostName: 'here',
      imageStore: 'containerd',
      isRootless: true,
      isPodman: false,
      mirrors: ['http://127.0.0.1:5055/'],
      insecure: ['127.0.0.0/8', 'a.example:5000'],
    })
  })

  test('has defaults for old engines and for podman', async () => {
    await startConfigurableEngine(socket, {
      info: { DriverStatus: null, SecurityOptions: null, RegistryConfig: null },
      components: [{ Name: 'Podman Engine' }],
    })
    expect(await engineHere().findInfo()).toMatchObject({
      imageStore: 'classic',
      isPodman: true,
      mirrors: [],
      insecure: [],
    })
  })
})

describe('a trial pull', () => {
  const image = 'docker.io/mirror-check/00:check'

  test('that succeeds leaves no image', async () => {
    const { requests } = await startConfigurableEngine(socket)
    expect(await engineHere().images.tryPull(image, 5000)).toEqual({ failed: undefined })
    expect(requests).toEqual(['POST /images/create', `DELETE /images/${image}`])
  })

  test.each([
    [
      'in an answer with status 200',
      200,
      '{"status":"Pulling"}\n{"errorDetail":{},"error":"no such image"}',
      'no such image',
    ],
    ['with status 500', 500, '{"message":"no such image"}', /no such image/],
  ])('that fails %s returns the reason', async (_, status, body, failed) => {
    await startConfigurableEngine(socket, { pull: (_, response) => void response.writeHead(status).end(body) })
    expect(await engineHere().images.tryPull(image, 5000)).toEqual({ failed: expect.stringMatching(failed) })
  })

  test('that takes too long ends with a reason', async () => {
    await startConfigurableEngine(socket, { pull: (_, response) => response.flushHeaders() })
    expect(await engineHere().images.tryPull(image, 200)).toEqual({ failed: 'the pull took longer than 0.2 s' })
  })

  test('without an engine returns the reason', async () => {
    expect(await engineHere().images.tryPull(image, 5000)).toEqual({ failed: expect.stringContaining('ENOENT') })
  })
})
