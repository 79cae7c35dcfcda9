/** A machine whose Docker engine is reached by the user's own ssh; whatever is undefined, ssh's configuration says. */
export interface SshEndpoint {
  readonly kind: 'ssh'
  readonly host: string
  readonly user: string | undefined
  readonly port: number | undefined
}

/**
 * `ssh://[user@]host[:port]`; undefined for anything else, a password or a path among it, as `docker` has it. A host that looks
 * like an option is none either. https://docs.docker.com/engine/security/protect-access/
 */
export function parseSshHost(text: string): SshEndpoint | undefined {
  const found = /^ssh:\/\/(?:([^@:/?#\s]+)@)?(\[[\da-f:.]+(?:%[\w.-]+)?\]|[^@:/?#[\]\s]+)(?::(\d{1,5}))?\/?$/i.exec(
    text,
  )
  const host = found?.[2]?.replace(/^\[|\]$/g, '')
  const user = decoded(found?.[1])
  if (host === undefined || host.startsWith('-') || (found?.[1] !== undefined && user === undefined)) return undefined
  return { kind: 'ssh', host, user, port: found?.[3] === undefined ? undefined : Number(found[3]) }
}

function decoded(text: string | undefined): string | undefined {
  try {
    return text && decodeURIComponent(text)
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}
