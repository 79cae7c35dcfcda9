import type { DockerEndpoint } from '../docker/endpoint.ts'

/** As DOCKER_HOST would name it, whatever the engine was chosen by. */
export function hostOf(endpoint: DockerEndpoint): string {
  if (endpoint.kind === 'socket')
    return `${endpoint.path.startsWith('//./pipe/') ? 'npipe' : 'unix'}://${endpoint.path}`
  const { kind, host, port } = endpoint
  const user = endpoint.kind === 'ssh' && endpoint.user !== undefined ? `${encodeURIComponent(endpoint.user)}@` : ''
  return `${kind}://${user}${host.includes(':') ? `[${host}]` : host}${port === undefined ? '' : `:${port}`}`
}
