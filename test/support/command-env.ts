/** Lets the listeners take any port, and serve no network. */
export const anyPort = {
  MIRROR_CACHE_LISTEN: '127.0.0.1:0',
  MIRROR_REGISTRY_LISTEN: '127.0.0.1:0',
  MIRROR_ADMIN_LISTEN: '127.0.0.1:0',
  MIRROR_NETWORKS: '',
  /** Asks no server outside of the tests. */
  MIRROR_NO_QUOTA_PROBE: '1',
}

/** Returns the variables of a command with this home. It inherits no settings of the machine: no proxy, no colours, no other mirror, no engine. */
export function commandEnv(home: string): Record<string, string> {
  const path = process.env['PATH'] ?? ''
  return { PATH: path, HOME: home, MIRROR_HOME: home, DOCKER_HOST: `unix://${home}/none.sock`, ...anyPort }
}
