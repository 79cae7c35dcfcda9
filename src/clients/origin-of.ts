/** The URL of a registry itself: Docker Hub's name is not its address. */
export function originOf(registry: string): string {
  return registry === 'docker.io' ? 'https://registry-1.docker.io' : `https://${registry}`
}
