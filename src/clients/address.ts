import { exitCode, MirrorError } from '../lib/errors.ts'
import type { CommandResult } from '../lib/process.ts'
import type { ClientLocation, Machine } from './types.ts'

/** Holds the first versions that accept the capability `referrers` in hosts.toml; older ones ignore the whole file. */
const minReferrersVersions = { containerd: [2, 2], nerdctl: [2, 2] } as const

/** Holds the addresses of a running mirror, see `mirror status --json`. */
export interface MirrorEndpoints {
  readonly runtime: 'process' | 'container'
  readonly cache: readonly string[]
  readonly registry: readonly string[]
  /** Holds the cache's URL for the containers of each network. */
  readonly networks: Readonly<Record<string, string>>
  /** Names the Docker engine on whose machine the addresses are, as `ssh://me@host`; undefined for this machine. */
  readonly engine?: string | undefined
  /** Returns why the mirror does not serve a network; undefined when unknown. */
  readonly unserved?: ((network: string) => UnservedNetwork | undefined) | undefined
}

/** Explains why the mirror does not serve a network. */
export interface UnservedNetwork {
  /** Holds the rest of a sentence after the name of the network: `which does not exist yet`. */
  readonly why: string
  readonly hints: readonly string[]
}

/** Holds the mirror's addresses for one client. */
export interface ClientAddress {
  readonly cache: string
  readonly registry: string | undefined
  /** Holds one line for the user with the client, the address and the reason for it. */
  readonly why: string
}

/**
 * Returns the address by which a client reaches the mirror. No other function decides it. Throws MirrorError (missing) when the
 * client cannot reach the mirror.
 */
export function resolveClientAddress(location: ClientLocation, endpoints: MirrorEndpoints): ClientAddress {
  const cache = chooseUrl(endpoints.cache)
  if (cache === undefined) throw new MirrorError('The running mirror has no cache address.', { exit: exitCode.missing })
  const registry = chooseUrl(endpoints.registry)
  if (endpoints.engine !== undefined && location.in !== 'network')
    throw createRemoteEngineError(endpoints.engine, cache)
  switch (location.in) {
    case 'host':
      return {
        cache: replaceHost(cache),
        registry: registry && replaceHost(registry),
        why: `this machine reaches the mirror at ${replaceHost(cache)}`,
      }
    case 'vm':
      return {
        cache: replaceHost(cache, location.hostName),
        registry: registry && replaceHost(registry, location.hostName),
        why: `${location.what} runs in a virtual machine and reaches this one at ${replaceHost(cache, location.hostName)}`,
      }
    case 'network': {
      const url = endpoints.networks[location.network]
      if (url === undefined && location.hostName !== undefined && endpoints.engine === undefined)
        return {
          cache: replaceHost(cache, location.hostName),
          registry: registry && replaceHost(registry, location.hostName),
          why: `${location.what} are in a virtual machine and reach this one at ${replaceHost(cache, location.hostName)}`,
        }
      if (url === undefined) throw createUnservedNetworkError(location.what, location.network, endpoints)
      const { hostname } = new URL(url)
      const where =
        endpoints.runtime === 'container'
          ? `its name on network ${location.network}`
          : `the gateway of network ${location.network}`
      const reached = endpoints.runtime === 'container' ? 'the mirror' : 'this process'
      return {
        cache: url,
        registry: registry && replaceHost(registry, hostname),
        why: `${location.what} reach ${reached} at ${url}, ${where}`,
      }
    }
    case 'isolated':
      throw new MirrorError(`${location.what} cannot reach the mirror at ${replaceHost(cache)}: ${location.why}.`, {
        exit: exitCode.missing,
        hints: [
          ...location.hints.map((hint) => hint.replace(':PORT', `:${new URL(cache).port}`)),
          `${location.hints.length === 0 ? '' : 'Or: '}mirror configure CLIENT --mirror URL   (an address you know to be reachable)`,
        ],
      })
  }
}

/** Returns a warning about a loopback address that the user gave for a client outside of this machine; undefined when the address is plausible. */
export function describeLoopbackProblem(url: string, location: ClientLocation): string | undefined {
  if (location.in === 'host' || !isLoopbackUrl(url)) return undefined
  return `${location.what} cannot reach ${url}, because a loopback address means the client's own machine there. It is written as given.`
}

function createRemoteEngineError(engine: string, cache: string): MirrorError {
  return new MirrorError(
    `The mirror runs in a container on ${engine}, and ${cache} is reachable on that machine only.`,
    {
      exit: exitCode.missing,
      hints: [
        `mirror configure CLIENT --mirror ${cache}   (run it on that machine)`,
        'mirror configure CLIENT --mirror URL   (an address you know to be reachable)',
      ],
    },
  )
}

function createUnservedNetworkError(
  what: string,
  network: string,
  { networks, unserved }: MirrorEndpoints,
): MirrorError {
  const known = unserved?.(network)
  if (known !== undefined)
    return new MirrorError(`${what} are on the Docker network ${network}, ${known.why}.`, {
      exit: exitCode.missing,
      hints: [...known.hints, 'mirror configure CLIENT --mirror URL   (an address you know to be reachable)'],
    })
  const served = Object.keys(networks)
  const servedNetworks = served.length === 0 ? 'no Docker network' : `only ${served.join(', ')}`
  return new MirrorError(`${what} are on the Docker network ${network}, and the mirror serves ${servedNetworks}.`, {
    exit: exitCode.missing,
    hints: [
      `mirror up --network ${network}`,
      `docker network inspect ${network}   (does it exist?)`,
      'mirror logs   (shows why the mirror does not listen there)',
    ],
  })
}

function chooseUrl(urls: readonly string[]): string | undefined {
  return urls.find((url) => new URL(url).hostname === '127.0.0.1') ?? urls.find((url) => isLoopbackUrl(url)) ?? urls[0]
}

/** Returns the URL with another host. Without one, an unspecified address (`0.0.0.0`) becomes the loopback address. */
function replaceHost(url: string, host?: string): string {
  const { protocol, hostname, port } = new URL(url)
  const loopbackHosts: Record<string, string> = { '0.0.0.0': '127.0.0.1', '[::]': '127.0.0.1' }
  const authority = host ?? loopbackHosts[hostname] ?? hostname
  return `${protocol}//${authority}${port === '' ? '' : `:${port}`}`
}

/** Reports whether the host of a URL is the loopback one. */
export function isLoopbackUrl(url: string): boolean {
  const { hostname } = new URL(url)
  return hostname === 'localhost' || hostname === '[::1]' || hostname.startsWith('127.')
}

/** Parses major and minor: [0, 29] for `0.29.1+ds1`, with or without a leading `v`; undefined for text that is not a version. */
export function parseVersion(version: string | undefined): readonly [number, number] | undefined {
  const [, major, minor] = /^v?(\d+)(?:\.(\d+))?(?:[^\d]|$)/.exec(version ?? '') ?? []
  return major === undefined ? undefined : [Number(major), Number(minor ?? 0)]
}

/**
 * Reports whether this is the given version or a later one; false when it is unknown. A release candidate counts as the release.
 */
export function isAtLeast(version: string | undefined, major: number, minor: number): boolean {
  const known = parseVersion(version)
  return known !== undefined && (known[0] > major || (known[0] === major && known[1] >= minor))
}

/** Finds the version in the output of `containerd --version`: `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193…` */
export function parseContainerdVersion(stdout: string): string | undefined {
  return /(?:^|\s)v?(\d+\.\d+\.\d[\w.-]*)/.exec(stdout)?.[1]
}

/** Returns the location of containers in a Docker network. `what` names them in texts. */
export function getDockerNetworkLocation(
  { platform }: Pick<Machine, 'platform'>,
  what: string,
  network: string,
): ClientLocation {
  // Assume a virtual machine, in which Docker runs on these platforms.
  const inVm = platform === 'darwin' || platform === 'win32'
  return { in: 'network', what, network, ...(inVm && { hostName: 'host.docker.internal' }) }
}

/** Returns the first line of a program's version output; undefined when it is not installed, or fails. Waits at most 5 s. */
export async function getProgramVersion(
  { runCommand }: Pick<Machine, 'runCommand'>,
  program: string,
  ...args: string[]
): Promise<string | undefined> {
  const result = await runCommand(program, args, { timeoutMs: 5000 })
  return result?.exitCode === 0 ? result.stdout.trim().split('\n')[0] : undefined
}

/** Matches the errors of a program that lacks its daemon, a permission or a plugin, which tell nothing of its configuration. */
const unavailable =
  /(?:cannot|unable to|failed to) connect to|connection refused|permission denied|unknown command|is not a docker command/i

/**
 * Returns the error with which a program answered, as a sentence that begins with the command; undefined when it succeeded, is not
 * installed, took too long, or only lacks its daemon or a permission.
 */
export function describeProgramFailure(
  command: string,
  result: Pick<CommandResult, 'exitCode' | 'stderr'> | undefined,
): string | undefined {
  if (result?.exitCode === undefined || result.exitCode === 0 || unavailable.test(result.stderr)) return undefined
  const lines = result.stderr.trim().split('\n')
  const line = lines.findLast((one) => /^error:/i.test(one)) ?? lines.at(-1)!
  const why = line.replace(/^error:\s*/i, '').trim()
  return `${command} fails: ${why === '' ? `exit code ${result.exitCode}` : why.replace(/\.$/, '')}.`
}

/**
 * Reports whether the installed ones of the other programs that read the same hosts.toml files accept the capability `referrers`.
 * With `--root` no program is run, and the version that the user gave decides.
 */
export async function allSupportReferrers(
  { runCommand, detached }: Machine,
  programs: readonly (keyof typeof minReferrersVersions)[],
): Promise<boolean> {
  if (detached) return true
  for (const program of programs) {
    const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
    if (result === undefined) continue
    if (!isAtLeast(parseContainerdVersion(result.stdout), ...minReferrersVersions[program])) return false
  }
  return true
}

/** Lists the names that other programs have for Docker Hub; docker, containerd, BuildKit, k3s and podman look it up as docker.io. */
export const hubAliases: ReadonlySet<string> = new Set([
  'index.docker.io',
  'registry-1.docker.io',
  'registry.hub.docker.com',
  'hub.docker.com',
])
