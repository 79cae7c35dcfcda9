import { spawnSync } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { descriptorsOf, holdIdle, withDescriptors } from '../support/descriptors.ts'
import { expectContent } from '../support/expect-content.ts'
import { get, open, type Answer } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess, type MirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { app } from '../support/scene.ts'
import { startUpstream } from '../support/upstream.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))

async function startNarrow(limit: number) {
  const image = makeImage({ layers: [noise(200_000)] })
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  const upstreams = { 'docker.io': upstream.url }
  const mirror = await startMirrorProcess({ upstreams, registry: true, wrapper: withDescriptors(limit) })
  return { mirror, layer: image.layers[0]! }
}

/** Sends requests on all listeners at the same time. Each must get 200, or 503 with `Retry-After`. */
async function askAll({ url, registryUrl, adminUrl }: MirrorProcess, blob: string, count: number): Promise<number[]> {
  const targets = [
    { from: url, path: blob },
    { from: url, path: '/v2/' },
    { from: registryUrl!, path: '/v2/' },
    { from: adminUrl, path: '/healthz' },
  ]
  const asked = Array.from({ length: count }, (_, at) => {
    const { from, path } = targets[at % targets.length]!
    return get(from, path)
  })
  const answers: Answer[] = await Promise.all(asked)
  for (const { status, headers } of answers)
    if (status !== 200) expect([status, headers['retry-after']]).toEqual([503, expect.any(String)])
  return answers.map(({ status }) => status)
}

describe.skipIf(process.platform !== 'linux')('a limit of 64 open files', () => {
  test('answers 200 clients on the cache, the registry and the admin listener at once with 200 or 503, three times over', async () => {
    const { mirror, layer } = await startNarrow(64)
    const blob = `${app}/blobs/${layer}`
    expectContent(await mirror.get(blob), layer)
    const before = descriptorsOf(mirror.pid)
    for (const _ of [1, 2, 3]) {
      const statuses = await askAll(mirror, blob, 200)
      expect(statuses).toContain(200)
      expect(statuses).toContain(503)
    }
    expectContent(await mirror.get(blob), layer)
    await expect.poll(() => descriptorsOf(mirror.pid)).toBeLessThanOrEqual(before + 1)
    expect(mirror.log()).not.toMatch(/"level":"error"/)
  })

  test('serves the status beside as many pages as listen to events', async () => {
    const { mirror } = await startNarrow(64)
    const pages = []
    for (let count = 0; count < 5; count++) {
      const response = await open(mirror.adminUrl, '/api/events')
      onTestFinished(() => void response.destroy())
      pages.push(response.statusCode)
    }
    expect(pages[0]).toBe(200)
    expect(pages).toContain(503)
    expect((await mirror.status()).running).toBe(true)
  })

  test('serves pulls, pushes and the status beside 300 connections without a request, and leaks nothing', async () => {
    const { mirror, layer } = await startNarrow(64)
    const before = descriptorsOf(mirror.pid)
    const listeners = [mirror.url, mirror.registryUrl!, mirror.adminUrl]
    const idle = await Promise.all(listeners.map((url) => holdIdle(url, 100)))
    const tasks = {
      pull: () => mirror.get(`${app}/blobs/${layer}`),
      push: () => get(mirror.registryUrl!, '/v2/app/blobs/uploads/', { method: 'POST' }),
      status: () => get(mirror.adminUrl, '/healthz'),
    }
    const until = performance.now() + 5000
    const done = new Set<string>()
    // Repeats the tasks for a while; each one must succeed.
    while (performance.now() < until || done.size < 3) {
      for (const [name, task] of Object.entries(tasks)) {
        const answer = await task().catch(() => undefined)
        if (answer && answer.status < 300) done.add(name)
      }
      await sleep(100)
    }
    for (const { release } of idle) release()
    await expect.poll(() => descriptorsOf(mirror.pid)).toBeLessThanOrEqual(before + 1)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect((await mirror.status()).running).toBe(true)
  })
})

describe.skipIf(process.platform !== 'linux')('a limit of 40 open files', () => {
  test.each(['serve', 'up'])(
    'is refused by `mirror %s`, which names the limit it needs and how to raise it',
    async (command) => {
      const home = await temporaryHome()
      await writeFile(join(home, 'mirror.yaml'), 'networks: []\n')
      const [file, ...args] = [...withDescriptors(40), process.execPath, program, command]
      const { status, stderr } = spawnSync(file, args, {
        env: { ...process.env, MIRROR_HOME: home },
        encoding: 'utf8',
      })
      expect(status).toBe(2)
      expect(stderr).toContain('The limit on open files is 40, and the mirror needs at least 56')
      expect(stderr).toContain('ulimit -n 1024')
    },
  )

  test.each(['serve', 'up'])(
    'is refused by `mirror %s` with the same message where the program itself cannot be loaded',
    async (command) => {
      const home = await temporaryHome()
      const run = (limit: number) => {
        const [file, ...args] = [...withDescriptors(limit), process.execPath, program, command]
        const env = { ...process.env, MIRROR_HOME: home, MIRROR_NETWORKS: '' }
        return spawnSync(file, args, { env, encoding: 'utf8' })
      }
      const wordsOf = ({ stderr }: { stderr: string }) => stderr.slice(stderr.indexOf('mirror: '))
      const told = wordsOf(run(40))
      expect(told).toContain('ulimit -n 1024   (in a new shell)')
      // Skips lower limits, at which Node itself ends, or cannot read the program's first file.
      const isEnough = (limit: number) => {
        const [file, ...args] = [
          ...withDescriptors(limit),
          process.execPath,
          '-e',
          'require("node:fs").readFileSync("/dev/null")',
        ]
        return spawnSync(file, args).status === 0
      }
      const least = Array.from({ length: 40 }, (_, limit) => limit).find(isEnough)!
      for (const limit of [1, 2, 3].map((more) => least + more)) {
        const ended = run(limit)
        expect(ended.stderr).not.toMatch(/^\s+at /m)
        expect(ended.status, ended.stderr).toBe(2)
        expect(wordsOf(ended)).toBe(told.replace('files is 40', `files is ${limit}`))
      }
    },
  )
})
