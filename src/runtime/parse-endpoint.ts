import type { DockerEndpoint } from '../docker/endpoint.ts'

/** An endpoint as it was noted down, in JSON; undefined for what is none. */
export function parseEndpoint(value: Record<string, unknown>): DockerEndpoint | undefined {
  const { kind, path, host, user, port, tlsFolder } = value
  if (kind === 'socket' && typeof path === 'string') return { kind, path }
  if (typeof host !== 'string') return undefined
  const numbered = typeof port === 'number' ? port : undefined
  if (kind === 'ssh') return { kind, host, user: typeof user === 'string' ? user : undefined, port: numbered }
  if (kind !== 'tcp' || numbered === undefined) return undefined
  return { kind, host, port: numbered, tlsFolder: typeof tlsFolder === 'string' ? tlsFolder : undefined }
}
