import { chmod, chown, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { toRootPaths } from '../../../src/config/paths.ts'

const nobody = 65_534

let folder: string
let foreignFolder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-places-'))
  foreignFolder = join(folder, 'nobody')
  await mkdir(foreignFolder)
})
afterEach(() => rm(folder, { recursive: true }))

describe.runIf(process.getuid?.() === 0)('the environment of root', () => {
  beforeEach(() => chown(foreignFolder, nobody, nobody))

  function clean(env: Record<string, string>) {
    return toRootPaths({ env, cwd: '/' }, '/root')
  }

  test('keeps each path that only root can change, and all variables that are not paths', () => {
    const env = {
      HOME: folder,
      MIRROR_HOME: join(folder, 'not-there-yet'),
      XDG_STATE_HOME: folder,
      TMPDIR: '/tmp',
      PATH: '/usr/bin:/bin',
      NODE_OPTIONS: '--max-old-space-size=256 --use-system-ca',
      MIRROR_LOG_LEVEL: 'debug',
      USER: 'nobody',
    }
    expect(clean(env)).toEqual({ env, ignored: [] })
  })

  test('has no path of another user, neither in a setting of mirror nor in one of the programs it runs', () => {
    const names = `
      MIRROR_HOME MIRROR_CONFIG MIRROR_DATA MIRROR_TLS_KEY XDG_CONFIG_HOME XDG_STATE_HOME
      XDG_DATA_HOME XDG_CACHE_HOME XDG_RUNTIME_DIR TMPDIR DOCKER_CONFIG DOCKER_CERT_PATH
      KUBECONFIG CONTAINERS_REGISTRIES_CONF REGISTRY_AUTH_FILE NODE_PATH OPENSSL_CONF
      CONTAINERS_REGISTRIES_CONF_OVERRIDE REGISTRIES_CONFIG_PATH
      NODE_EXTRA_CA_CERTS AWS_CONFIG_FILE GOOGLE_APPLICATION_CREDENTIALS CLOUDSDK_CONFIG
      GNUPGHOME
`
      .trim()
      .split(/\s+/)
    const { env, ignored } = clean(Object.fromEntries(names.map((name) => [name, join(foreignFolder, 'x')])))
    expect(env).toEqual({})
    expect(ignored.map(({ name }) => name).toSorted()).toEqual(names.toSorted())
    expect(ignored[0]).toMatchObject({ why: `${foreignFolder} belongs to nobody`, owner: nobody })
  })

  test('has the home folder of root, and a PATH with programs of root only', () => {
    const { env } = clean({ HOME: foreignFolder, PATH: `${foreignFolder}:.::bin:/usr/local/bin:/usr/bin:${folder}` })
    expect(env).toEqual({ HOME: '/root', PATH: `/usr/local/bin:/usr/bin:${folder}` })
    expect(clean({ PATH: foreignFolder }).env['PATH']).toContain('/usr/bin')
  })

  test('has no option of Node that loads a file of another user', () => {
    for (const option of ['--require ', '-r ', '--import=', '--import=file://', '--env-file='])
      expect(clean({ NODE_OPTIONS: `--no-warnings ${option}${foreignFolder}/x.js` }).env, option).toEqual({})
  })

  test('has no engine socket that another user can create', async () => {
    const socketOfRoot = join(folder, 'docker.sock')
    const engine = createServer().listen(socketOfRoot)
    onTestFinished(() => void engine.close())
    await once(engine, 'listening')
    // Lets the group connect, as Docker's socket does.
    await chmod(socketOfRoot, 0o660)
    for (const name of ['DOCKER_HOST', 'CONTAINER_HOST']) {
      for (const socket of [join(foreignFolder, 'docker.sock'), '/tmp/mirror-no-such.sock']) {
        const { env, ignored } = clean({ [name]: `unix://${socket}` })
        expect(env).toEqual({})
        expect(ignored).toMatchObject([{ name, value: socket }])
      }
      for (const value of [
        `unix://${socketOfRoot}`,
        `unix://${join(folder, 'later.sock')}`,
        'tcp://127.0.0.1:2375',
        'ssh://me@there',
      ])
        expect(clean({ [name]: value })).toEqual({ env: { [name]: value }, ignored: [] })
    }
  })

  test('has no list with a path of another user, and no relative path that leads to one', () => {
    expect(clean({ KUBECONFIG: `/root/.kube/config:${foreignFolder}/config` }).env).toEqual({})
    expect(toRootPaths({ env: { MIRROR_HOME: 'm' }, cwd: foreignFolder }, '/root').env).toEqual({})
  })

  test('has no file that others can write, and no file below a folder that others can write', async () => {
    const file = join(folder, 'config')
    await writeFile(file, '')
    await chmod(file, 0o666)
    expect(clean({ MIRROR_CONFIG: file })).toMatchObject({ env: {}, ignored: [{ why: `others can write ${file}` }] })
    await chmod(file, 0o644)
    expect(clean({ MIRROR_CONFIG: file }).ignored).toEqual([])
    await chmod(folder, 0o775)
    expect(clean({ MIRROR_CONFIG: file }).ignored).toMatchObject([{ why: `others can write ${folder}` }])
  })
})
