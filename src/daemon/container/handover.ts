import type { Config } from '../../config/config.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { runCommand } from '../../lib/process.ts'
import type { Clock } from '../../lib/time.ts'
import { canonicalRegistry, parseRegistryHost } from '../../oci/reference.ts'
import { createCredentials, credentialHostOf, renderHanded } from '../../upstream/credentials.ts'
import { dockerConfigPath } from '../../upstream/docker-credentials.ts'
import type { Credential } from '../../upstream/identity.ts'
import { UpstreamError } from '../../upstream/upstream.ts'

/**
 * The file that hands over this user's credentials for these registries, and no others. Throws a MirrorError (exit 2) for a
 * registry that there is none for, or whose credential cannot be had.
 */
export async function handOver(
  hosts: readonly string[],
  { upstreams }: Pick<Config, 'upstreams'>,
  env: Readonly<Record<string, string | undefined>>,
  clock: Clock,
): Promise<string> {
  const found = new Map<string, Credential>()
  for (const host of hosts) {
    const settings = upstreams[host]
    const owner = credentialHostOf(host, settings ?? {})
    const source = settings?.credentials ?? { from: 'docker-config' }
    const credentials = createCredentials({
      host: owner,
      source,
      dockerConfig: dockerConfigPath(env),
      env,
      runCommand,
      clock,
    })
    const credential = await credentials.find().catch((error: unknown) => {
      if (!(error instanceof UpstreamError)) throw error
      throw new MirrorError(error.message, { exit: exitCode.usage, cause: error })
    })
    if (credential === undefined)
      throw new MirrorError(`There is no credential for ${owner} on this machine to hand over.`, {
        exit: exitCode.usage,
        hints: [
          `docker login ${owner === 'docker.io' ? '' : owner}`.trim(),
          'mirror up --credentials HOST…   (only those of HOST…; "none" for none at all)',
        ],
      })
    found.set(owner, credential)
  }
  return renderHanded(found, clock.wall())
}

/**
 * The registries whose credentials the container gets: those that were named, or else those that it has. `before`: what it has,
 * as long as it may; after `cache.shareCredentials` was taken back that is nothing. Throws a MirrorError (exit 2) for a name that
 * is none.
 */
export function wantedCredentials(
  named: readonly string[] | undefined,
  before: readonly string[],
  { cache }: Pick<Config, 'cache'>,
): string[] {
  if (named === undefined) return cache.shareCredentials ? [...before] : []
  return named.length === 1 && named[0]!.trim() === 'none' ? [] : credentialHosts(named)
}

/** Registries as a user names them. Throws a MirrorError (exit 2) for what is none. */
export function credentialHosts(texts: readonly string[]): string[] {
  const hosts = texts.map((text) => {
    const host = parseRegistryHost(text.trim())
    if (host !== undefined) return canonicalRegistry(host)
    throw new MirrorError(`${JSON.stringify(text)} is not a registry's host name.`, {
      exit: exitCode.usage,
      hints: ['mirror up --runtime container --credentials registry.corp.example'],
    })
  })
  return [...new Set(hosts)]
}

/** Throws a MirrorError (exit 2) when credentials are asked for and everybody who reaches the container would share them unasked. */
export function refuseUnshared(hosts: readonly string[], { cache }: Pick<Config, 'cache'>): void {
  if (hosts.length === 0 || cache.shareCredentials) return
  throw new MirrorError('Credentials are handed to a container only together with cache.shareCredentials.', {
    exit: exitCode.usage,
    hints: [
      'mirror.yaml: cache: {shareCredentials: true}   (all who reach the container then use them)',
      'Leave --credentials out: clients then get private images from their registry themselves',
    ],
  })
}
