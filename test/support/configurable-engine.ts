import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { onTestFinished } from 'vitest'

export interface ConfigurableEngine {
  /** Each request as `method path`, without its query. */
  readonly requests: string[]
}

export interface ConfigurableEngineOptions {
  /** Members that replace those of its `/info`. */
  readonly info?: Record<string, unknown>
  /** `Components` of its `/version`. */
  readonly components?: readonly { readonly Name: string }[]
  /** Answers a pull; default: progress and no error. */
  readonly pull?: (request: IncomingMessage, response: ServerResponse) => void
}

/** Starts the parts of a Docker engine that `mirror configure` uses, on a socket, until the test ends. */
export async function startConfigurableEngine(
  socket: string,
  options: ConfigurableEngineOptions = {},
): Promise<ConfigurableEngine> {
  const requests: string[] = []
  const server = createServer((request, response) => {
    const path = request.url!.split('?')[0]!
    requests.push(`${request.method} ${path}`)
    const json = (value: unknown) => response.setHeader('content-type', 'application/json').end(JSON.stringify(value))
    if (path === '/info')
      return json({
        ServerVersion: '27.5.1',
        OperatingSystem: 'Debian',
        Name: 'here',
        DriverStatus: [],
        ...options.info,
      })
    if (path === '/version') return json({ Version: '27.5.1', Components: options.components ?? [{ Name: 'Engine' }] })
    if (path === '/images/create') {
      if (options.pull) return options.pull(request, response)
      return response.end('{"status":"Pulling"}\r\n{"status":"Digest: sha256:00"}\r\n')
    }
    if (request.method === 'DELETE') return json([])
    return response.writeHead(404).end('{"message":"no"}')
  })
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise((resolve) => server.close(resolve))
  })
  return { requests }
}
