import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { app, startScene } from '../support/scene.ts'

describe('cached content', () => {
  // Counts them, because an AbortController and its listeners on the socket cost half of an answer.
  test('is served without an AbortController', async () => {
    const { mirror, image, layer } = await startScene({ cache: { tagFreshness: 60_000 } })
    const [config] = image.blobs.keys()
    const paths = [`manifests/v1`, `manifests/${image.digest}`, `blobs/${config}`]
    for (const path of [...paths, `blobs/${layer}`]) await mirror.get(`${app}/${path}`)
    // A busy disk stores a blob after its client has it.
    const statusOf = async (path: string) => (await mirror.get(`${app}/${path}`)).headers['cache-status']
    for (const path of paths) await expect.poll(() => statusOf(path)).toBe('mirror; hit')
    let made = 0
    class Counted extends AbortController {
      constructor() {
        super()
        made += 1
      }
    }
    vi.stubGlobal('AbortController', Counted)
    onTestFinished(() => void vi.unstubAllGlobals())
    for (const path of paths) {
      for (const method of ['GET', 'HEAD']) expect((await mirror.get(`${app}/${path}`, { method })).status).toBe(200)
      const etag = { 'if-none-match': (await mirror.get(`${app}/${path}`)).headers.etag! }
      expect((await mirror.get(`${app}/${path}`, { headers: etag })).status).toBe(304)
    }
    const part = await mirror.get(`${app}/blobs/${config}`, { headers: { range: 'bytes=0-9' } })
    expect(part.status).toBe(206)
    expect(made).toBe(0)
    // Expects one for a body from disk, because its client may disconnect meanwhile.
    expect((await mirror.get(`${app}/blobs/${layer}`)).status).toBe(200)
    expect(made).toBeGreaterThan(0)
  })
})
