import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { RunCommand } from '../../../../src/lib/process.ts'
import { ensureImage, localImage, type ImageRequest } from '../../../../src/daemon/container/image.ts'
import { createFakeEngine, type FakeEngine } from '../../../support/fake-engine.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-image-'))
  const files = {
    'package/package.json': '{"dependencies": {"leaf": "1"}}',
    'package/oclif.manifest.json': '{}',
    'package/bin/run.js': '',
    'package/dist/index.js': '',
    'package/templates/Dockerfile': 'FROM node:24-slim\n',
    'package/node_modules/leaf/package.json': '{}',
    node: 'a binary',
    'lib.so': 'a library',
  }
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(folder, path)), { recursive: true })
    await writeFile(join(folder, path), text)
  }
})
afterEach(() => rm(folder, { recursive: true }))

const spring2026 = Date.parse('2026-03-01')
const fall2026 = Date.parse('2026-11-01')

function request(difference: Partial<ImageRequest> = {}, host: Partial<ImageRequest['host']> = {}) {
  const messages: string[] = []
  const runCommand: RunCommand = () =>
    Promise.resolve({ exitCode: 0, stdout: `\tlib.so => ${folder}/lib.so (0x00007f)\n`, stderr: '' })
  const imageRequest: ImageRequest = {
    requested: undefined,
    published: undefined,
    root: join(folder, 'package'),
    memoFile: join(folder, 'image.json'),
    network: undefined,
    host: {
      platform: 'linux',
      arch: 'x64',
      execPath: join(folder, 'node'),
      nodeVersion: 'v20.20.0',
      now: spring2026,
      ...host,
    },
    runCommand,
    signal: new AbortController().signal,
    notify: (text) => messages.push(text),
    ...difference,
  }
  return { asked: imageRequest, said: messages }
}

async function ensure(docker: FakeEngine, { asked: imageRequest }: ReturnType<typeof request>) {
  return ensureImage(docker, await docker.getInfo(), imageRequest)
}

describe('the image', () => {
  test('that the user named is used, and pulled when it is absent', async () => {
    const docker = createFakeEngine()
    docker.registry.set('mine:1', { id: 'mine' })
    expect(await ensure(docker, request({ requested: 'mine:1' }))).toMatchObject({ id: 'mine' })
    expect(await ensure(docker, request({ requested: 'mine:1' }))).toMatchObject({ id: 'mine' })
    expect(docker.done).toEqual(['pull mine:1'])
    await expect(ensure(docker, request({ requested: 'absent:1' }))).rejects.toMatchObject({ exit: 4 })
  })

  test('for another architecture is refused', async () => {
    const docker = createFakeEngine()
    docker.addImage('mine:1', { architecture: 's390x' })
    const error = { exit: 2, message: expect.stringContaining('is for linux/s390x') }
    await expect(ensure(docker, request({ requested: 'mine:1' }))).rejects.toMatchObject(error)
  })

  test('that was published is preferred to a local build when it can be pulled', async () => {
    const docker = createFakeEngine()
    docker.registry.set('published:1', { id: 'published' })
    expect(await ensure(docker, request({ published: 'published:1' }))).toMatchObject({ id: 'published' })
    await ensure(docker, request({ published: 'published:2' }))
    expect(docker.done).toContain(`import ${localImage}`)
  })

  test('is built from this Node once, and tried before it is used', async () => {
    const docker = createFakeEngine()
    const made = await ensure(docker, request())
    expect(docker.done).toEqual([
      `import ${localImage}`,
      expect.stringMatching(/^create mirror-trial-/),
      expect.stringMatching(/^start mirror-trial-/),
      expect.stringMatching(/^remove mirror-trial-/),
    ])
    docker.done.length = 0
    expect((await ensure(docker, request())).id).toBe(made.id)
    expect(docker.done).toEqual([])

    await writeFile(join(folder, 'package/dist/index.js'), 'changed')
    expect((await ensure(docker, request())).id).not.toBe(made.id)
  })

  test('is the same for files that differ only in their times', async () => {
    const docker = createFakeEngine()
    const made = await ensure(docker, request())
    await rm(join(folder, 'image.json'))
    await rm(join(folder, 'node'))
    await writeFile(join(folder, 'node'), 'a binary')
    expect((await ensure(docker, request())).id).toBe(made.id)
  })

  test('is built on the base image when this Node does not run in a container', async () => {
    const docker = createFakeEngine()
    docker.trial = { code: 1, lines: ['names cannot be looked up: EAI_FAIL'] }
    docker.registry.set('node:24-slim', {})
    const imageRequest = request()
    await ensure(docker, imageRequest)
    expect(docker.done.slice(-2)).toEqual(['pull node:24-slim', `build ${localImage}`])
    expect(imageRequest.said.join('\n')).toContain('names cannot be looked up: EAI_FAIL')
  })

  test.each([
    ['of another system', {}, { platform: 'darwin' as const }],
    ['for another architecture than the engine', {}, { arch: 'arm64' }],
  ])('is built on the base image for a Node %s', async (_, difference, host) => {
    const docker = createFakeEngine()
    docker.registry.set('node:24-slim', {})
    await ensure(docker, request(difference, host))
    expect(docker.done).toEqual(['pull node:24-slim', `build ${localImage}`])
    const offline = createFakeEngine()
    await expect(ensure(offline, request(difference, host))).rejects.toMatchObject({ exit: 4 })
  })

  test('is built on the base image after the end of life of this Node, and from this Node when the pull fails', async () => {
    const docker = createFakeEngine()
    docker.registry.set('node:24-slim', {})
    const old = request({}, { now: fall2026 })
    await ensure(docker, old)
    expect(docker.done).toEqual(['pull node:24-slim', `build ${localImage}`])
    expect(old.said.join('\n')).toContain('reached end of life on 2026-04-30')

    const offline = createFakeEngine()
    await ensure(offline, request({}, { now: fall2026 }))
    expect(offline.done.slice(0, 2)).toEqual(['pull node:24-slim', `import ${localImage}`])
  })

  test('whose trial is interrupted is removed, and so is the trial container', async () => {
    const docker = createFakeEngine()
    docker.trial = 'silent'
    const interrupt = new AbortController()
    docker.refuse = (what) => {
      if (what.startsWith('start mirror-trial-')) setTimeout(() => interrupt.abort(), 5)
      return undefined
    }
    await expect(ensure(docker, request({ signal: interrupt.signal }))).rejects.toMatchObject({ name: 'AbortError' })
    expect(docker.done.at(-1)).toMatch(/^remove mirror-trial-/)
    expect(await docker.images.find(localImage)).toBeUndefined()
  })

  test.each([
    ['cannot be created', `import ${localImage}`, 'The Docker engine cannot create the image: no space left.'],
    ['cannot be tried', 'connect kind', 'The new image cannot be tried: no space left.'],
  ])('that %s is a MirrorError, and leaves nothing behind', async (_, refused, message) => {
    const docker = createFakeEngine()
    docker.refuse = (what) => (what === refused ? 'no space left' : undefined)
    await expect(ensure(docker, request({ network: 'kind' }))).rejects.toMatchObject({ name: 'MirrorError', message })
    expect(docker.done.at(-1) ?? 'remove mirror-trial-').toMatch(/^remove mirror-trial-/)
    expect(await docker.images.find(localImage)).toBeUndefined()
  })
})
