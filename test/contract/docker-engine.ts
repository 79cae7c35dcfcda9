import { expect, test } from 'vitest'
import { type DockerEngine, type ContainerSpec, DockerError } from '../../src/docker/engine.ts'
import { toTarFile, createTar, streamTar } from '../../src/lib/tar.ts'

/** OpenEngine opens the engine under test; `shell`: its image whose /bin/sh has echo, exit and /bin/busybox. */
export type OpenEngine = () => Promise<{ engine: DockerEngine; shell: string }>

/** Tests the contract of Docker engines, real or fake. `hasNetworkEvents`: false for podman, which sends none for networks. */
export function dockerEngineContract(open: OpenEngine, { hasNetworkEvents = true } = {}): void {
  const spec = (image: string, name: string, script: string): ContainerSpec => ({
    name,
    image,
    entrypoint: ['/bin/sh', '-c'],
    command: [script],
    env: {},
    user: '1000:1000',
    labels: { 'dev-mirror.version': '1' },
    ports: [{ inside: 7000, outside: 0 }],
    data: { at: '/data', from: { volume: `${name}-data` } },
    memory: 64 * 1024 ** 2,
    restarts: false,
    healthCheck: undefined,
    logOptions: {},
  })
  const refusal = (action: Promise<unknown>) =>
    action.then(
      () => expect.unreachable(),
      (error: unknown) => {
        expect(error).toBeInstanceOf(DockerError)
        return (error as DockerError).status
      },
    )

  test('describes itself, and finds nothing that does not exist', async () => {
    const { engine } = await open()
    expect(await engine.getInfo()).toMatchObject({
      architecture: expect.stringMatching(/^(amd64|arm64)$/),
      os: 'linux',
    })
    expect(await engine.ping()).toBe(true)
    expect(await engine.findInfo()).toEqual(await engine.getInfo())
    expect(await engine.networks.findGateways('nowhere')).toEqual([])
    expect(await engine.containers.find('nobody')).toBeUndefined()
    expect(await engine.images.find('nothing:1')).toBeUndefined()
    expect(await engine.networks.find('nowhere')).toBeUndefined()
    expect(await engine.volumes.find('nothing')).toBeUndefined()
    await engine.containers.remove('nobody')
    await engine.containers.stop('nobody', 1)
    await engine.images.remove('nothing:1')
    await engine.volumes.remove('nothing')
    expect(await refusal(engine.containers.start('nobody'))).toBe(404)
    expect(await refusal(engine.containers.unpack('nobody', '/data', await createTar([])))).toBe(404)
  })

  test('creates a container once, runs it, and returns its log and exit code', async () => {
    const { engine, shell } = await open()
    const { containers, volumes } = engine
    const id = await containers.create(spec(shell, 'once', 'echo one; echo two; exit 3'))
    expect(await refusal(containers.create(spec(shell, 'once', 'exit 0')))).toBe(409)
    expect(await containers.find('once')).toMatchObject({
      id,
      name: 'once',
      user: '1000:1000',
      labels: { 'dev-mirror.version': '1' },
      running: false,
      image: (await engine.images.find(shell))!.id,
    })
    await containers.start('once')
    expect(await containers.wait(id)).toBe(3)
    const request = { lines: 10, follow: false, signal: new AbortController().signal }
    const lines: string[] = []
    for await (const line of containers.readLogs(id, request)) lines.push(line)
    expect(lines).toStrictEqual(['one', 'two'])
    expect(await containers.find(id)).toMatchObject({ running: false, exitCode: 3 })
    expect(await refusal(volumes.remove('once-data'))).toBe(409)
    await containers.remove('once')
    expect(await containers.find(id)).toBeUndefined()
    await volumes.remove('once-data')
    expect(await volumes.find('once-data')).toBeUndefined()
  })

  test('creates a volume with labels, which a second creation does not change', async () => {
    const { engine, shell } = await open()
    const { containers, volumes } = engine
    await volumes.create('labelled-data', { 'dev-mirror.owner': '/here' })
    await volumes.create('labelled-data', { 'dev-mirror.owner': '/here' })
    const id = await containers.create(spec(shell, 'labelled', 'exit 0'))
    expect(await volumes.find('labelled-data')).toMatchObject({ labels: { 'dev-mirror.owner': '/here' } })
    await containers.remove(id)
    await volumes.remove('labelled-data')
    await containers.remove(await containers.create(spec(shell, 'plain', 'exit 0')))
    expect(await volumes.find('plain-data')).toMatchObject({ labels: {} })
    await volumes.remove('plain-data')
  })

  test('renames a container only to a free name', async () => {
    const { engine, shell } = await open()
    const { containers, volumes } = engine
    const id = await containers.create(spec(shell, 'first', 'exit 0'))
    await containers.create(spec(shell, 'second', 'exit 0'))
    expect(await refusal(containers.rename('first', 'second'))).toBe(409)
    expect(await refusal(containers.rename('nobody', 'third'))).toBe(404)
    await containers.rename(id, 'third')
    await containers.rename('second', 'first')
    expect(await containers.find('third')).toMatchObject({ id })
    for (const name of ['first', 'third']) await containers.remove(name)
    for (const name of ['first', 'second']) await volumes.remove(`${name}-data`)
  })

  test('publishes a free port of 127.0.0.1 while a container runs', async () => {
    const { engine, shell } = await open()
    const { containers } = engine
    const id = await containers.create(spec(shell, 'waits', '/bin/busybox sleep 60'))
    const greeting = { path: 'greeting', mode: 0o600, uid: 1000, gid: 1000, content: toTarFile('hello') }
    await containers.unpack(id, '/data', await createTar([greeting]))
    await containers.start(id)
    await containers.start(id)
    const found = await containers.find(id)
    expect(found).toMatchObject({ running: true, ports: [{ inside: 7000, outside: expect.any(Number) }] })
    const { outside } = found!.ports[0]!
    expect(outside).toBeGreaterThan(0)
    expect(await containers.findPublishing(outside)).toStrictEqual([{ name: 'waits', address: '127.0.0.1' }])
    await containers.rename('waits', 'waits-on')
    expect(await containers.find('waits')).toBeUndefined()
    expect(await containers.find('waits-on')).toMatchObject({
      id,
      name: 'waits-on',
      running: true,
      ports: found!.ports,
    })
    expect(await containers.findPublishing(1)).toStrictEqual([])
    await containers.stop(id, 1)
    await containers.stop(id, 1)
    expect(await containers.find(id)).toMatchObject({ running: false })
    expect(await containers.findPublishing(outside)).toStrictEqual([])
    await containers.remove(id)
  })

  test('runs a program in a running container', async () => {
    const { engine, shell } = await open()
    const { containers, volumes } = engine
    const id = await containers.create(spec(shell, 'talks', '/bin/busybox sleep 60'))
    expect(await refusal(containers.exec(id, ['/bin/busybox', 'cat']))).toBe(409)
    await containers.start(id)
    const echo = await containers.exec(id, ['/bin/busybox', 'cat'])
    const content = Buffer.alloc(300_000, 'talk')
    echo.end(content)
    expect(Buffer.concat(await echo.toArray()).equals(content)).toBe(true)
    const failing = await containers.exec(id, ['/bin/busybox', 'sh', '-c', 'echo no more >&2; exit 1', 'exit'])
    await expect(failing.toArray()).rejects.toMatchObject({ name: 'ExecError', message: 'no more' })
    await containers.stop(id, 1)
    await containers.remove(id)
    await volumes.remove('talks-data')
  })

  test('creates a network, and connects and disconnects containers', async () => {
    const { engine, shell } = await open()
    const { containers, networks } = engine
    const options = { 'com.docker.network.driver.mtu': '1400' }
    await networks.create({ name: 'six', ipv6Subnet: 'fc00:1:2:3::/64', options })
    const six = await networks.find('six')
    expect(six).toMatchObject({ name: 'six', driver: 'bridge', ipv6: true })
    // Ignores the name of the option, because podman has another one.
    expect(Object.values(six!.options)).toStrictEqual(['1400'])
    expect(await refusal(networks.create({ name: 'six', ipv6Subnet: undefined, options }))).toBe(409)
    await networks.create({ name: 'four', ipv6Subnet: undefined, options: {} })
    expect(await networks.find('four')).toMatchObject({ ipv6: false })
    expect(await networks.findGateways('four')).toEqual([expect.stringMatching(/^\d+\.\d+\.\d+\.\d+$/)])

    const id = await containers.create(spec(shell, 'joins', 'exit 0'))
    await networks.connect('six', id, ['alias', 'alias.svc'])
    expect((await containers.find(id))!.networks).toContain('six')
    await networks.disconnect('six', id)
    expect((await containers.find(id))!.networks).not.toContain('six')
    await containers.remove(id)
  })

  test('creates an image of a tar archive with labels, and keeps it while it is in use', async () => {
    const { engine } = await open()
    const { containers, images } = engine
    const file = { path: 'file', mode: 0o644, content: toTarFile('content') }
    await images.import('made:1', { 'dev-mirror.content': '0123abc' }, streamTar([file]))
    const made = await images.find('made:1')
    const { architecture, os } = await engine.getInfo()
    expect(made).toMatchObject({ hasEntrypoint: false, labels: { 'dev-mirror.content': '0123abc' } })
    expect(made).toMatchObject({ architecture, os })
    const id = await containers.create(spec('made:1', 'user', 'exit 0'))
    await images.remove(made!.id)
    expect(await images.find(made!.id)).toBeDefined()
    await containers.remove(id)
    await images.remove('made:1')
    expect(await images.find('made:1')).toBeUndefined()
    await refusal(images.pull('nowhere.invalid/nothing:1', new AbortController().signal))
    expect(await images.tryPull('nowhere.invalid/nothing:1', 60_000)).toEqual({ failed: expect.any(String) })
  })

  test.skipIf(!hasNetworkEvents)('calls back when networks change, until the signal aborts', async () => {
    const { engine } = await open()
    const stop = new AbortController()
    let changes = 0
    const watching = engine.networks.watch(() => (changes += 1), stop.signal)
    await expect.poll(() => changes).toBeGreaterThan(0)
    const before = changes
    await engine.networks.create({ name: 'watched', ipv6Subnet: undefined, options: {} })
    await expect.poll(() => changes).toBeGreaterThan(before)
    stop.abort()
    await watching
  })
}
