import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { FullTrace } from '../../src/cli/trace-flow.ts'
import { mirrorPaths } from '../../src/config/paths.ts'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { commandEnv } from '../support/command-env.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { noise } from '../support/noise.ts'
import { startUpstream } from '../support/upstream.ts'

const program = join(findPackageRoot(), 'bin', 'run.js')
const image = makeImage({ layers: [noise(50_000, 1)] })

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-trace-'))
})
afterEach(async () => {
  await mirror('down')
  await rm(home, { recursive: true })
})

const start = (...args: string[]): ChildProcess =>
  spawn(process.execPath, [program, ...args], { env: commandEnv(home), cwd: home })

async function mirror(...args: string[]) {
  return finished(start(...args))
}

async function finished(child: ChildProcess) {
  let [stdout, stderr] = ['', '']
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number | null]
  return { exit, stdout, stderr }
}

const readJson = async (...args: string[]) => JSON.parse((await mirror('trace', ...args, '--json')).stdout) as FullTrace

/** Starts a mirror of a registry with `library/app:v1`. Returns the URLs of the cache and the registry. */
async function startMirror(): Promise<{ cache: string; registry: string }> {
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
  await writeFile(
    join(home, 'mirror.yaml'),
    `cache: {tagFreshness: 60s, minFree: 0B}\nupstreams: {docker.io: {url: "${upstream.url}", credentials: anonymous}}\n`,
  )
  const up = await mirror('up', '--json')
  expect(up).toMatchObject({ exit: 0 })
  const { endpoints } = JSON.parse(up.stdout) as { endpoints: { cache: string[]; registry: string[] } }
  return { cache: endpoints.cache[0]!, registry: endpoints.registry[0]! }
}

test('without a running mirror there is nothing to trace, and the exit code is 3', async () => {
  expect(await mirror('trace', 'app')).toMatchObject({
    exit: 3,
    stdout: '',
    stderr: expect.stringContaining('mirror up') as string,
  })
  const json = await mirror('trace', 'app', '--json')
  expect(json.exit).toBe(3)
  expect(JSON.parse(json.stdout)).toEqual({ running: false })
  expect(await mirror('trace', 'app', '--follow', '--json')).toMatchObject({ exit: 3, stdout: '{"running":false}\n' })
})

test('an image is explained before its pull, after it, and from the log after a restart', async () => {
  const { cache } = await startMirror()
  const before = await mirror('trace', 'app:v1', '--client', 'docker')
  expect(before).toMatchObject({ exit: 0, stderr: '' })
  expect(before.stdout).toMatch(
    /^A pull of docker\.io\/library\/app:v1 now is a miss: at least 1 request to docker\.io/,
  )

  const answers = [await get(cache, '/v2/library/app/manifests/v1?ns=docker.io')]
  for (const digest of image.blobs.keys())
    answers.push(await get(cache, `/v2/library/app/blobs/${digest}?ns=docker.io`))
  await expect.poll(async () => (await readJson('app:v1')).next.result).toBe('hit')
  const after = await readJson('app:v1')
  expect(after.requests.filter(({ cache }) => cache === 'miss').map(({ reason }) => reason)).toEqual([
    'first',
    'first',
    'first',
  ])

  const id = answers[2]!.headers['x-request-id'] as string
  const traced = await readJson(id)
  expect(traced).toMatchObject({ image: 'docker.io/library/app:v1', request: { id, kind: 'blob', status: 200 } })

  await mirror('down')
  await mirror('up')
  const later = await readJson('app:v1')
  expect(later.requests.map((request) => request.id)).toEqual(after.requests.map((request) => request.id))
  expect((await readJson(id)).request).toMatchObject({ id })
})

test('a name or a client that does not exist is wrong usage', async () => {
  await startMirror()
  const wrong = await mirror('trace', 'A B')
  expect(wrong).toMatchObject({ exit: 2, stdout: '' })
  expect(wrong.stderr).toMatch(/cannot be traced[^]*Next:\n {2}mirror trace --help/)
  expect((await mirror('trace', 'app', '--platform', 'x')).exit).toBe(2)
  expect(await mirror('trace', 'app', '--client', 'dokcer')).toMatchObject({
    exit: 2,
    stderr: expect.stringMatching(/Did you mean docker\?[^]*mirror trace app --client CLIENT/) as string,
  })
  expect((await mirror('trace')).exit).toBe(2)
})

test('an image of the registry for pushed images is named by its address', async () => {
  const { registry } = await startMirror()
  const { host } = new URL(registry)
  const { stdout } = await mirror('trace', `${host}/app:1`)
  expect(stdout).toContain('Nobody has pushed app:1 to the registry of this mirror.')
})

test('each request is explained by its id: a part of a push, a list, and one that is not known', async () => {
  const { cache, registry } = await startMirror()
  const push = async (path: string, body: Buffer, type: string) => {
    const answer = await fetch(`${registry}${path}`, {
      method: 'PUT',
      body: new Uint8Array(body),
      headers: { 'content-type': type },
    })
    expect(answer.status).toBe(201)
    return answer.headers.get('x-request-id')!
  }
  const ids: string[] = []
  for (const [digest, bytes] of image.blobs) {
    const begun = await fetch(`${registry}/v2/team/tool/blobs/uploads/`, { method: 'POST' })
    ids.push(begun.headers.get('x-request-id')!)
    const { pathname } = new URL(begun.headers.get('location')!, registry)
    ids.push(await push(`${pathname}?digest=${digest}`, bytes, 'application/octet-stream'))
  }
  ids.push(await push('/v2/team/tool/manifests/1', image.bytes, image.mediaType))
  const name = `${new URL(registry).host}/team/tool:1`
  for (const id of ids) expect(await readJson(id)).toMatchObject({ image: name, request: { id } })

  const list = (await get(cache, '/v2/library/app/tags/list')).headers['x-request-id'] as string
  expect(await mirror('trace', list)).toMatchObject({
    exit: 0,
    stdout: expect.stringMatching(/^Request\n.*library\/app tags.*\n\nIt concerns no image\.\n$/) as string,
  })
  expect(await readJson(list)).toEqual({ request: expect.objectContaining({ id: list, kind: 'tags' }) })
  expect(await mirror('trace', list, '--follow')).toMatchObject({ exit: 2, stdout: '' })

  const unknown = await mirror('trace', 'mx46t8aqlpz')
  expect(unknown).toMatchObject({ exit: 2, stdout: '' })
  expect(unknown.stderr).toContain('mx46t8aqlpz looks like the id of a request')
  expect(unknown.stderr).toContain('last 2,000 requests')
  expect(unknown.stderr).toMatch(/^ {2}mirror logs .*\n {2}mirror trace docker\.io\/library\/mx46t8aqlpz /m)
  expect(await mirror('trace', 'mx46t8aqlpz', '--json')).toMatchObject({ exit: 2, stdout: '' })
  expect(await mirror('trace', 'mx46t8aqlpz', '--follow')).toMatchObject({ exit: 2, stdout: '' })
  // An image of such a name can be named in full, and what cannot be an id is an image.
  for (const name of ['docker.io/library/mx46t8aqlpz', 'mx46t8aqlpz:latest', 'postgresql16', 'elasticsearch'])
    expect((await readJson(name)).next.result).toBe('miss')
})

test('a damaged record of a client is a note, and the rest of the trace is shown', async () => {
  await startMirror()
  const { stateDir } = mirrorPaths({ platform: process.platform, env: commandEnv(home), homedir: home, cwd: home })
  await mkdir(join(stateDir, 'configured'), { recursive: true })
  await writeFile(join(stateDir, 'configured', 'docker-0.json'), '{')
  const { exit, stdout } = await mirror('trace', 'app:v1')
  expect(exit).toBe(0)
  expect(stdout).toMatch(/^Clients\n {2}not known +\S*docker-0\.json is damaged/m)
  expect(stdout).toContain('Upstream')
  expect(await readJson('app:v1')).toMatchObject({
    clients: [],
    clientsError: expect.stringContaining('damaged') as string,
  })
})

test('a followed pull prints its changes in a pipe, and ends when it is complete', async () => {
  const { cache } = await startMirror()
  const follow = start('trace', 'app:v1', '--follow')
  const ended = finished(follow)
  let output = ''
  let waiting = ''
  follow.stdout!.on('data', (text: string) => (output += text))
  follow.stderr!.on('data', (text: string) => (waiting += text))
  await expect
    .poll(() => waiting, { timeout: 10_000 })
    .toBe('Waiting for requests for docker.io/library/app:v1. Ctrl-C ends this.\n')
  await get(cache, '/v2/library/app/manifests/v1?ns=docker.io')
  for (const digest of image.blobs.keys()) await get(cache, `/v2/library/app/blobs/${digest}?ns=docker.io`)
  expect((await ended).exit).toBe(0)
  expect(output).toMatch(/complete docker\.io\/library\/app:v1\n$/)
  expect(output).toContain(`held layer ${image.layers[0]}`)
  const again = await mirror('trace', 'app:v1', '--follow', '--json')
  expect(again.exit).toBe(0)
  expect(JSON.parse(again.stdout)).toMatchObject({ next: { result: 'hit' } })
  const waits = start('trace', 'app:v2', '--follow')
  const interrupted = finished(waits)
  await once(waits.stderr!, 'data')
  waits.kill('SIGINT')
  expect((await interrupted).exit).toBe(130)
})
