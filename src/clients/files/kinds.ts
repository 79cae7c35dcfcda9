import { basename } from 'node:path'
import { type Document, parseAllDocuments } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { shellWord } from '../../lib/process.ts'
import { isLoopback } from '../address.ts'
import { tableOf, type TomlTable, tryToml } from '../edit/toml.ts'
import type { FileChange, FilesNow, MirrorForClient } from '../types.ts'
import { type FileKind, knownDocuments, knownNames, knownTables, type RecognizedFile } from './known.ts'

/** What a file is; undefined when nothing in it tells. */
export function recognizeFile(path: string, content: string): RecognizedFile | undefined {
  const byName = knownNames.find(([name]) => name.test(basename(path)))
  if (byName) return byName[1]
  const toml = tryToml(content)
  if (toml !== undefined) return knownTables.find((rule) => rule.fits(toml))
  const all = documentsIn(content)
  // The first document may be a comment, or something small beside the one that matters.
  return all.map((one) => knownDocuments.find((rule) => rule.fits(one))).find((rule) => rule !== undefined)
}

/** What a file should be. */
interface ExpectedFile {
  readonly kinds: readonly FileKind[]
  /** `a buildkitd.toml` */
  readonly expected: string
}

/**
 * Throws a MirrorError (usage) for a file that is plainly another program's: what it looks like, and the command for it. Returns
 * whether it is plainly of the kind that is expected.
 */
export function refuseOtherKinds(path: string, content: string, { kinds, expected }: ExpectedFile): boolean {
  const found = recognizeFile(path, content)
  if (found !== undefined && (found.kind === undefined || !kinds.includes(found.kind)))
    throw otherKind(path, found, expected)
  return found !== undefined
}

/**
 * Throws a MirrorError (usage) for a file that sets something, and nothing of what its program knows, or mostly other things:
 * many programs have a `log`.
 */
export function refuseUnknownKeys(
  path: string,
  content: unknown,
  { expected, keys }: Pick<ExpectedFile, 'expected'> & { readonly keys: ReadonlySet<string> },
): void {
  const there = Object.keys(tableOf(content) ?? {})
  const unknown = there.filter((key) => !keys.has(key))
  if (unknown.length <= there.length - unknown.length) return
  const listed = unknown.slice(0, 5).join(', ')
  const why =
    unknown.length === there.length
      ? `it sets nothing but ${listed}`
      : `most of what it sets is unknown there: ${listed}`
  throw new MirrorError(`${path} is not ${expected}, so it is left alone: ${why}.`, {
    exit: exitCode.usage,
    hints: [`give ${expected} by --file`],
  })
}

/** The refusal (usage) of a file that is another program's. */
function otherKind(path: string, { is, hint }: RecognizedFile, expected: string): MirrorError {
  return new MirrorError(`${path} looks like ${is}, not like ${expected}. It is left alone.`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [] : [hint.replace('FILE', shellWord(path))],
  })
}

/** The maps in it; none for what is not valid. */
function documentsIn(content: string): TomlTable[] {
  const parsed = parseAllDocuments(content, { prettyErrors: false, merge: true })
  if (!Array.isArray(parsed)) return []
  return parsed.flatMap((one) => {
    const map = one.errors.length > 0 ? undefined : tableOf(plain(one))
    return map === undefined ? [] : [map]
  })
}

function plain(document: Document.Parsed): unknown {
  try {
    return document.toJS()
  } catch (error) {
    // Aliases without an anchor, or without end.
    if (error instanceof ReferenceError) return undefined
    throw error
  }
}

/** What dockerd reads in its file; it refuses all else. https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file */
export const dockerdKeys: ReadonlySet<string> = setOf(`
  allow-direct-routing allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge
  bridge-accept-fwmark builder cgroup-parent cluster-advertise cluster-store cluster-store-opts containerd
  containerd-namespace containerd-plugins-namespace containerd-plugin-namespace cpu-rt-period cpu-rt-runtime
  cri-containerd data-root debug default-address-pools default-cgroupns-mode default-gateway default-gateway-v6
  default-ipc-mode default-network-opts default-runtime default-shm-size default-ulimits deprecated-key-path
  disable-legacy-registry dns dns-opts dns-search exec-opts exec-root experimental features firewall-backend
  fixed-cidr fixed-cidr-v6 graph group host host-gateway-ip host-gateway-ips hosts http-proxy https-proxy icc
  init init-path insecure-registries ip ip-forward ip-forward-no-drop ip-masq iptables ip6tables ipv6 isolation
  labels live-restore log-driver log-format log-level log-opts max-concurrent-downloads max-concurrent-uploads
  max-download-attempts metrics-addr min-api-version mtu network-control-plane-mtu network-diagnostic-port
  no-new-privileges no-proxy node-generic-resources oom-score-adjust pidfile proxies raw-logs registry-mirrors
  root rootless runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts
  swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path
  userns-remap validate
`)

/** What buildkitd reads at the top of its file. https://github.com/moby/buildkit/blob/master/cmd/buildkitd/config/config.go */
export const buildkitdKeys: ReadonlySet<string> = setOf(`
  debug trace root insecure-entitlements log grpc otel cdi worker workers registry dns history frontend system
  provenanceEnvDir cache proxy
`)

/** What k3s reads at the top of a registries.yaml. https://docs.k3s.io/installation/private-registry */
export const registriesKeys: ReadonlySet<string> = setOf('mirrors configs auths')

function setOf(words: string): ReadonlySet<string> {
  return new Set(words.trim().split(/\s+/))
}

/** The first line of every file that is ours alone; to be read by people, and by us when we come back. */
export const writtenByMirror = '# Written by mirror. To take it back: mirror configure --undo\n'

/** For files that are made anew each time. */
export const ownFileHeader = `${writtenByMirror}# Changes are lost when it is written again: make them in a file of your own.\n`

/** The text without those lines, whatever line ends an editor has given them since. */
export function withoutOwnHeader(text: string): string {
  const ours = new Set(ownFileHeader.split('\n').filter(Boolean))
  const lines = text.split(/(?<=\n)/)
  return lines.filter((line) => !ours.has(line.replace(/^\uFEFF/, '').trimEnd())).join('')
}

export function isWrittenByMirror(text: string): boolean {
  return text.includes(writtenByMirror.trimEnd())
}

/**
 * The name of our copy of the mirror's CA. In a folder that a client looks into for the certificates of one host every .crt
 * counts, so that the user's own stay in use beside it.
 */
export const caFileName = 'mirror-ca.crt'

/**
 * Puts the CA there, or takes away one of ours that is no longer needed. Throws a MirrorError (usage) for a file of that name
 * that is not ours.
 */
export function caChange(path: string, ca: string | undefined, files: FilesNow): FileChange[] {
  const current = files.text(path)
  const isOurs = current !== undefined && isWrittenByMirror(current)
  if (ca === undefined) return isOurs ? files.change(path, undefined) : []
  if (current === undefined || isOurs) return files.change(path, ownFileHeader + ca)
  throw new MirrorError(`${path} is there already and was not written by mirror, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`give ${path} another name, and try again`],
  })
}

/** Whether the path is that of such a copy. */
export function isCaFile(path: string): boolean {
  return /[^\\/]*$/.exec(path)?.[0] === caFileName
}

/**
 * The hosts, with their ports, for which a client that looks for certificates by host needs the CA. Of a registry on loopback
 * it asks for none.
 */
export function hostsToTrust({ cache, registry }: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  const others = registry === undefined || isLoopback(registry) ? [] : [new URL(registry).host]
  return [...new Set([new URL(cache).host, ...others])]
}
