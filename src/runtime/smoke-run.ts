import { randomBytes } from 'node:crypto'
import type { ContainerEngine, ContainerSpec } from '../docker/engine.ts'
import { unlessAborted } from '../lib/async.ts'
import { dataFolder, homeFolder, imageUser, node, program } from '../daemon/container/spec.ts'

const seconds = 30

/** Looks a name up, where there is a network with names, starts a server on free ports and waits for it to say that it is ready. */
const trial = `
const dns = require('node:dns'), { fork } = require('node:child_process')
const fail = (why) => { console.log(why); process.exit(1) }
setTimeout(() => fail('no answer within ${seconds} s'), ${seconds * 1000}).unref()
dns.lookup(process.env.NAME_TO_LOOK_UP, (error) => {
  if (error) return fail('names cannot be looked up: ' + error.code)
  const server = fork('${program}', ['serve'], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  server.on('exit', (code) => fail('the server ended with ' + code))
  server.on('message', (message) => {
    if (message.type !== 'ready') fail(message.message)
    server.removeAllListeners('exit')
    server.on('exit', () => process.exit(0))
    server.kill('SIGTERM')
  })
})`

/**
 * Whether an image works: undefined when it does, else what went wrong. Leaves nothing behind, also when the signal aborts. The container's own name on a
 * network of the user's is one that only the engine's name server knows; the default bridge has no such thing.
 */
export async function smokeRun(
  { containers, networks, volumes }: Pick<ContainerEngine, 'containers' | 'networks' | 'volumes'>,
  image: string,
  network: string | undefined,
  signal: AbortSignal,
): Promise<string | undefined> {
  const name = `mirror-trial-${randomBytes(4).toString('hex')}`
  const spec: ContainerSpec = {
    name,
    image,
    entrypoint: [node],
    command: ['-e', trial],
    env: {
      MIRROR_HOME: homeFolder,
      MIRROR_DATA: dataFolder,
      HOME: homeFolder,
      NAME_TO_LOOK_UP: network === undefined ? 'localhost' : name,
      MIRROR_CACHE_PORT: '0',
      MIRROR_REGISTRY_PORT: '0',
      MIRROR_ADMIN_PORT: '0',
    },
    user: imageUser,
    labels: {},
    ports: [],
    data: { at: dataFolder, from: { volume: name } },
    memory: 512 * 1024 ** 2,
    restarts: false,
    healthCheck: undefined,
    logOptions: {},
  }
  const container = await containers.create(spec)
  try {
    if (network !== undefined) await networks.connect(network, container, [name])
    await containers.start(container)
    if ((await unlessAborted(containers.wait(container), signal)) === 0) return undefined
    const said: string[] = []
    const request = { lines: 5, follow: false, signal: AbortSignal.timeout(5000) }
    for await (const line of containers.logs(container, request)) said.push(line)
    return said.join(' / ') || 'it ended without a word'
  } finally {
    await containers.remove(container)
    await volumes.remove(name)
  }
}
