/** The name by which a registry's images go: Docker Hub is `docker.io` by whichever of its names it is called. */
export function canonicalRegistry(host: string): string {
  return host === 'index.docker.io' || host === 'registry-1.docker.io' ? 'docker.io' : host
}

/** The URL of a registry itself, without a trailing slash: Docker Hub's name is not its address. */
export function originOf(registry: string): string {
  return registry === 'docker.io' ? 'https://registry-1.docker.io' : `https://${registry}`
}
