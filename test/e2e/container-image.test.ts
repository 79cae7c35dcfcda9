import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { makeImage } from '../support/images.ts'
import { startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { setStage } from './support/scene.ts'

const { missing, newer } = inject('e2e')

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('the image of a mirror in a container of %s', (_, root) => {
  test('up makes the image without a registry, reuses it, and builds it on a local image of Node if there is one', async () => {
    const stage = await setStage({ content: { 'library/app': { one: makeImage() } } })
    const { docker } = await startDockerd(stage, root, {})
    const { mirror, up, status } = await mirrorCommand(stage, {})
    const imageOf = async () => (await docker('inspect', '--format', '{{.Image}}', 'mirror')).trim()
    const leftovers = () => docker('ps', '--all', '--filter', 'name=trial', '--quiet')
    await up('--runtime', 'container')
    const made = await imageOf()
    expect(await leftovers()).toBe('')
    await mirror('down')
    await up('--runtime', 'container')
    expect(await imageOf(), 'the same content').toBe(made)
    await mirror('down')

    // Substitutes the base of the Dockerfile by an image that has Node at the same path.
    await docker('tag', 'dev-mirror:local', 'node:24-slim')
    await docker('image', 'rm', 'dev-mirror:local')
    await up('--runtime', 'container')
    const built = await imageOf()
    expect(built).not.toBe(made)
    expect(await docker('image', 'inspect', '--format', '{{.Config.User}} {{.Config.Cmd}}', built)).toBe(
      '1000:1000 [serve]\n',
    )
    expect(await status()).toMatchObject({ running: true, runtime: 'container' })
    await docker('tag', 'dev-mirror:local', 'mine:1')
    expect(await up('--image', 'mine:1')).toMatchObject({ outcome: 'already-up' })
    await mirror('down')
  })

  test('the image holds no credential, and the volume gets the named credentials at the start and by a refresh', async () => {
    const stage = await setStage({ content: { 'library/app': { one: makeImage() } } })
    const { docker } = await startDockerd(stage, root, {})
    const dockerConfig = join(stage.folder, 'docker')
    const logIn = async (password: string) => {
      const entry = (user: string) => ({ auth: Buffer.from(`${user}:${password}`).toString('base64') })
      const auths = { 'registry.example': entry('AWS'), 'other.example': entry('me') }
      await mkdir(dockerConfig, { recursive: true })
      await writeFile(join(dockerConfig, 'config.json'), JSON.stringify({ auths }))
      return entry('AWS').auth
    }
    const config = { cache: { shareCredentials: true } }
    const { mirror, up, status } = await mirrorCommand(stage, config, { DOCKER_CONFIG: dockerConfig })
    const first = await logIn('first-secret')
    await up('--runtime', 'container', '--credentials', 'registry.example')
    const { upstreams } = await status()
    expect(Object.keys(upstreams)).toStrictEqual(['registry.example'])
    expect(upstreams['registry.example']!.credentials).toMatchObject({ state: 'valid', expires: expect.any(String) })

    // Reads all folders, because every container has its own one, and removes that of its predecessor with a delay.
    const read = `const { readFileSync, readdirSync } = require('node:fs')
      const folders = readdirSync('/data/home/handed')
      process.stdout.write(folders.map((name) => readFileSync('/data/home/handed/' + name + '/docker/config.json')).join())`
    const handed = () => docker('exec', 'mirror', '/usr/local/bin/node', '-e', read)
    expect(await handed()).toContain(first)
    expect(await handed()).not.toContain('other.example')
    const second = await logIn('second-secret')
    expect(JSON.parse(await mirror('credentials', 'refresh', '--json'))).toMatchObject({
      registries: ['registry.example'],
    })
    expect(await handed()).toContain(second)
    for (const what of ['mirror', 'dev-mirror:local']) {
      const said = await docker('inspect', what)
      for (const secret of [first, second, 'secret']) expect(said).not.toContain(secret)
    }

    // Checks that the volume keeps the credentials until `up` names others, or none.
    await up()
    expect(await handed()).toContain(second)
    await up('--credentials', 'none')
    const squeezed = async () => (await handed()).replaceAll(/\s/g, '')
    await expect.poll(squeezed, { timeout: 10_000 }).toBe('{"auths":{}}')
    await mirror('down')
  })
})
