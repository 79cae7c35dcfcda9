import { exitCode, MirrorError } from '../lib/errors.ts'
import type { ClientLocation } from './types.ts'
import { type Machine } from './types.ts'

/** Where a running mirror answers, see `mirror status --json`. */
export interface MirrorEndpoints {
  readonly runtime: 'process' | 'container'
  readonly cache: readonly string[]
  readonly registry: readonly string[]
  /** The cache's URL for the containers of each network. */
  readonly networks: Readonly<Record<string, string>>
  /** `ssh://me@there`: the addresses are those of the machine of this Docker engine; undefined for this machine's. */
  readonly engine?: string | undefined
  /** Why it does not serve a network, where that is known. */
  readonly unserved?: ((network: string) => UnservedNetwork | undefined) | undefined
}

export interface UnservedNetwork {
  /** Goes on from the name of the network: `which does not exist yet`. */
  readonly why: string
  readonly hints: readonly string[]
}

export interface ClientAddress {
  readonly cache: string
  readonly registry: string | undefined
  /** One line for the user: who reaches what where, and why. */
  readonly why: string
}

/**
 * The address by which a client reaches the mirror: the one place that decides it. Throws a MirrorError (missing) when there
 * is none.
 */
export function resolveClientAddress(home: ClientLocation, endpoints: MirrorEndpoints): ClientAddress {
  const cache = chooseUrl(endpoints.cache)
  if (cache === undefined) throw new MirrorError('The running mirror has no cache address.', { exit: exitCode.missing })
  const registry = chooseUrl(endpoints.registry)
  if (endpoints.engine !== undefined && home.in !== 'network') throw createRemoteEngineError(endpoints.engine, cache)
  switch (home.in) {
    case 'host':
      return {
        cache: replaceHost(cache),
        registry: registry && replaceHost(registry),
        why: `this machine reaches the mirror at ${replaceHost(cache)}`,
      }
    case 'vm':
      return {
        cache: replaceHost(cache, home.hostName),
        registry: registry && replaceHost(registry, home.hostName),
        why: `${home.what} runs in a virtual machine and reaches this one at ${replaceHost(cache, home.hostName)}`,
      }
    case 'network': {
      const url = endpoints.networks[home.network]
      if (url === undefined && home.hostName !== undefined && endpoints.engine === undefined)
        return {
          cache: replaceHost(cache, home.hostName),
          registry: registry && replaceHost(registry, home.hostName),
          why: `${home.what} are in a virtual machine and reach this one at ${replaceHost(cache, home.hostName)}`,
        }
      if (url === undefined) throw createUnservedNetworkError(home.what, home.network, endpoints)
      const { hostname } = new URL(url)
      const where =
        endpoints.runtime === 'container'
          ? `its name on network ${home.network}`
          : `the gateway of network ${home.network}`
      const reached = endpoints.runtime === 'container' ? 'the mirror' : 'this process'
      return {
        cache: url,
        registry: registry && replaceHost(registry, hostname),
        why: `${home.what} reach ${reached} at ${url}, ${where}`,
      }
    }
    case 'apart':
      throw new MirrorError(`${home.what} cannot reach the mirror at ${replaceHost(cache)}: ${home.why}.`, {
        exit: exitCode.missing,
        hints: [...home.hints, 'mirror configure … --mirror URL   (an address you know to be reachable)'],
      })
  }
}

/** A warning about an address that the user gave and this client hardly reaches; undefined when there is nothing to say. */
export function describeLoopbackProblem(url: string, home: ClientLocation): string | undefined {
  if (home.in === 'host' || !isLoopback(url)) return undefined
  return `${home.what} cannot reach ${url}: there, that is an address of its own, not of this machine. It is written as you gave it.`
}

function createRemoteEngineError(engine: string, cache: string): MirrorError {
  return new MirrorError(`The mirror is in a container on ${engine}: ${cache} is an address of that machine alone.`, {
    exit: exitCode.missing,
    hints: [
      `mirror configure … --mirror ${cache}   (on that machine itself)`,
      'mirror configure … --mirror URL   (an address you know to be reachable)',
    ],
  })
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
      hints: [...known.hints, 'mirror configure … --mirror URL   (an address you know to be reachable)'],
    })
  const others = Object.keys(networks)
  const served = others.length === 0 ? 'no Docker network' : `only ${others.join(', ')}`
  return new MirrorError(`${what} are on the Docker network ${network}, and the mirror serves ${served}.`, {
    exit: exitCode.missing,
    hints: [
      `mirror up --network ${network}`,
      `docker network inspect ${network}   (does it exist?)`,
      'mirror logs   (why the mirror does not listen there)',
    ],
  })
}

function chooseUrl(urls: readonly string[]): string | undefined {
  return urls.find((url) => new URL(url).hostname === '127.0.0.1') ?? urls.find((url) => isLoopback(url)) ?? urls[0]
}

/** The URL with another host; one that means "every address" becomes the loopback one. */
function replaceHost(url: string, host?: string): string {
  const { protocol, hostname, port } = new URL(url)
  const everywhere: Record<string, string> = { '0.0.0.0': '127.0.0.1', '[::]': '127.0.0.1' }
  const authority = host ?? everywhere[hostname] ?? hostname
  return `${protocol}//${authority}${port === '' ? '' : `:${port}`}`
}

/** Whether a URL means the machine on which it is used. */
export function isLoopback(url: string): boolean {
  const { hostname } = new URL(url)
  return hostname === 'localhost' || hostname === '[::1]' || hostname.startsWith('127.')
}

/** `0.29.1+ds1`, with or without a `v`, is [0, 29]; undefined for what is no version. */
export function majorAndMinor(version: string | undefined): readonly [number, number] | undefined {
  const [, major, minor] = /^v?(\d+)(?:\.(\d+))?(?:[^\d]|$)/.exec(version ?? '') ?? []
  return major === undefined ? undefined : [Number(major), Number(minor ?? 0)]
}

/** Whether a version is known to be this one or a later one. A release candidate counts as the release. */
export function isAtLeast(version: string | undefined, major: number, minor: number): boolean {
  const known = majorAndMinor(version)
  return known !== undefined && (known[0] > major || (known[0] === major && known[1] >= minor))
}

/** The version in what `containerd --version` prints: `containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193…` */
export function containerdVersionIn(stdout: string): string | undefined {
  return /(?:^|\s)v?(\d+\.\d+\.\d[\w.-]*)/.exec(stdout)?.[1]
}

/** Containers of a Docker network, wherever their engine is. */
export function getDockerNetworkLocation(
  { platform }: Pick<Machine, 'platform'>,
  what: string,
  network: string,
): ClientLocation {
  // Where Docker is never native.
  const inVm = platform === 'darwin' || platform === 'win32'
  return { in: 'network', what, network, ...(inVm && { hostName: 'host.docker.internal' }) }
}

/** What a program says when it is asked for its version: the first line; undefined when it is not here, or does not say. */
export async function versionOf(
  { runCommand }: Pick<Machine, 'runCommand'>,
  program: string,
  ...args: string[]
): Promise<string | undefined> {
  const result = await runCommand(program, args, { timeoutMs: 5000 })
  return result?.exitCode === 0 ? result.stdout.trim().split('\n')[0] : undefined
}

/** The first versions that know the capability `referrers` in a hosts.toml; others pass over the whole file. */
const minReferrersVersions = { containerd: [2, 2], nerdctl: [2, 2] } as const

/**
 * Whether the other programs that read the same hosts.toml files know the capability `referrers`, as far as they are on this
 * machine. With `--root` nobody is asked: the version that was named decides.
 */
export async function readersKnowReferrers(
  { runCommand, detached }: Machine,
  programs: readonly (keyof typeof minReferrersVersions)[],
): Promise<boolean> {
  if (detached) return true
  for (const program of programs) {
    const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
    if (result === undefined) continue
    if (!isAtLeast(containerdVersionIn(result.stdout), ...minReferrersVersions[program])) return false
  }
  return true
}
