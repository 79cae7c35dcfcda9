import { createServer, type Server, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { temporaryHome } from './mirror.ts'

/** Serves the parts of the Docker API that list and watch networks. */
export class DockerApiServer {
  networks: object[] = []
  /** Number of requests for the list of networks. */
  listings = 0
  /** Number of the next requests for the list that fail. */
  failures = 0
  readonly #events = new Set<ServerResponse>()
  readonly #server: Server = createServer((request, response) => {
    const path = request.url!.split('?')[0]
    if (path === '/_ping') response.end('OK')
    else if (path === '/networks') {
      this.listings += 1
      if (this.failures > 0) {
        this.failures -= 1
        response.writeHead(500).end('{"message":"busy"}')
      } else response.setHeader('content-type', 'application/json').end(JSON.stringify(this.networks))
    } else if (path === '/events') {
      response.flushHeaders()
      this.#events.add(response)
    } else response.writeHead(404).end('{"message":"no"}')
  })

  async start(socket: string): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(socket, resolve))
  }

  changeNetworks(networks: object[]): void {
    this.networks = networks
    for (const response of this.#events) response.write('{"Type":"network","Action":"create"}\n')
  }

  /** Ends idle connections. */
  endIdle(): void {
    this.#server.closeIdleConnections()
  }

  async stop(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#server.close(() => resolve())
      this.#server.closeAllConnections()
    })
  }
}

/** Makes a network as the engine describes it. */
export const network = (name: string, ...gateways: string[]) => ({
  Name: name,
  Driver: 'bridge',
  IPAM: { Config: gateways.map((Gateway) => ({ Gateway })) },
})

export interface RunningEngine {
  readonly engine: DockerApiServer
  readonly socket: string
  /** Variables for a mirror to find the engine. */
  readonly env: Readonly<Record<'DOCKER_HOST', string>>
}

/** Starts an engine with these networks, until the test ends. */
export async function startDockerEngine(...networks: object[]): Promise<RunningEngine> {
  const socket = join(await temporaryHome(), 'docker.sock')
  const engine = new DockerApiServer()
  engine.networks = networks
  await engine.start(socket)
  onTestFinished(() => engine.stop())
  return { engine, socket, env: { DOCKER_HOST: `unix://${socket}` } }
}
