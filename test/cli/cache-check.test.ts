import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, expect, test } from 'vitest'
import { commandEnv } from '../support/command-env.ts'
import { makeImage } from '../support/images.ts'
import { program, startMirrorProcess } from '../support/mirror-process.ts'
import { temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { startUpstream } from '../support/upstream.ts'

async function run(home: string, ...args: string[]) {
  const child = spawn(process.execPath, [program, 'cache', 'check', ...args], { env: commandEnv(home), cwd: home })
  let [stdout, stderr] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number | null]
  return { exit, stdout, stderr }
}

describe('mirror cache check', () => {
  test('says of each tag whether the upstream has a newer image', async () => {
    const [old, next] = [makeImage({ layers: [noise(1000)] }), makeImage({ layers: [noise(2000)] })]
    const upstream = await startUpstream({ images: { 'library/app': { v1: old, v2: old } } })
    const { home, get } = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
    for (const tag of ['v1', 'v2']) await get(`/v2/library/app/manifests/${tag}`)
    upstream.push('library/app', 'v2', next)
    const before = upstream.requests.length
    expect(await run(home, 'app')).toEqual({
      exit: 0,
      stdout: `docker.io/library/app:v1: up to date\ndocker.io/library/app:v2: newer at the upstream: ${next.digest}\n`,
      stderr: '',
    })
    expect(upstream.requests.slice(before).map(({ method }) => method)).toEqual(['HEAD', 'HEAD'])
    const json = await run(home, 'app:v1', 'docker.io/library/app:v1', '--json')
    expect(JSON.parse(json.stdout)).toEqual([
      { image: 'docker.io/library/app:v1', digest: old.digest, changed: false, checkedAt: expect.any(String) },
    ])
  })

  test('exits with 5 when an upstream cannot tell, with 2 for what is not cached, and with 3 when no mirror runs', async () => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: makeImage() } } })
    const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
    await mirror.get('/v2/library/app/manifests/v1')
    await upstream.stop()
    const failed = await run(mirror.home, 'app:v1')
    expect(failed).toMatchObject({ exit: 5, stdout: expect.stringContaining('app:v1: not known: ') })
    const missing = await run(mirror.home, 'app:v2')
    expect(missing).toMatchObject({ exit: 2, stdout: '', stderr: expect.stringContaining('app:v1') })
    expect((await run(await temporaryHome(), 'app')).exit).toBe(2)
    mirror.kill('SIGTERM')
    await mirror.ended
    expect(await run(mirror.home, 'app:v1')).toMatchObject({ exit: 3, stderr: expect.stringContaining('mirror up') })
  })
})
