import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { configure } from './support/configure.ts'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { run } from './support/run.ts'
import { startScene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

interface Instance {
  Nodes: { DriverOpts: Record<string, string>; Files: Record<string, string> }[]
}

describe.skipIf(missing !== undefined)('mirror configure buildkit', () => {
  test("a builder that buildx creates by the printed command has the mirror in its configuration, and shares the host's network", async () => {
    const scene = await startScene({ registries: ['docker.io'], content: {} })
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': true } })
    const home = join(scene.folder, 'home')
    const settings = join(home, '.docker')
    await mkdir(settings, { recursive: true })
    const plugins = { cliPluginsExtraDirs: [join(newer, 'usr/libexec/docker/cli-plugins')] }
    await writeFile(join(settings, 'config.json'), JSON.stringify(plugins))
    const env = { PATH: searchPath(newer), HOME: home, DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
    const mirror = (...args: string[]) => configure(scene, { enter: dockerd.enter, env }, 'buildkit', ...args)

    // Expects a failure, because the current builder belongs to dockerd.
    expect(await mirror('--check')).toMatchObject({ exit: 5, stdout: expect.stringContaining("dockerd's own") })

    const done = await mirror('--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    const create = /docker (buildx create .*?)   /.exec(done.stderr)![1]!
    await run(join(newer, 'usr/bin/docker'), create.split(' '), { env })
    const [name] = await readdir(join(settings, 'buildx', 'instances'))
    const instance = JSON.parse(await readFile(join(settings, 'buildx', 'instances', name!), 'utf8')) as Instance
    const [node] = instance.Nodes
    expect(node?.DriverOpts).toEqual({ network: 'host' })
    const read = Buffer.from(node!.Files['buildkitd.toml']!, 'base64').toString()
    expect(read).toMatch(/\[registry."docker.io"\]\s+mirrors = \["127.0.0.1:5055"\]/)
    expect(read).toMatch(/\[registry."127.0.0.1:5055"\]\s+http = true/)

    expect(await mirror('--undo', '--yes')).toMatchObject({ exit: 0 })
    expect((await readdir(join(settings, 'buildx'))).filter((file) => file.endsWith('.toml'))).toEqual([])
  })
})
