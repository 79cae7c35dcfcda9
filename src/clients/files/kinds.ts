import { basename } from 'node:path'
import { type Document, parseAllDocuments } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { quoteShellWord } from '../../lib/process.ts'
import { isLoopbackUrl } from '../address.ts'
import { asTable, type TomlTable, tryReadToml } from '../edit/toml.ts'
import type { FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'
import { type FileKind, knownDocuments, knownNames, knownTables, type RecognizedFile } from './known.ts'

/** Recognizes a file by its name or content; undefined for an unknown file. */
export function recognizeFile(path: string, content: string): RecognizedFile | undefined {
  const byName = knownNames.find(([name]) => name.test(basename(path)))
  if (byName) return byName[1]
  const toml = tryReadToml(content)
  if (toml !== undefined) return knownTables.find((rule) => rule.matches(toml))
  const all = parseDocuments(content)
  // Check all documents: the first one may be empty or beside the point.
  return all.map((one) => knownDocuments.find((rule) => rule.matches(one))).find((rule) => rule !== undefined)
}

/** Names the kinds of file that are expected. */
interface ExpectedFile {
  readonly kinds: readonly FileKind[]
  /** Describes the expected file in errors: `a buildkitd.toml`. */
  readonly expected: string
}

/**
 * Throws a MirrorError (usage) for a file that is recognized as another program's; it names that program and the command for it.
 * Returns whether the file is recognized as one of the expected kinds.
 */
export function assertFileKind(path: string, content: string, { kinds, expected }: ExpectedFile): boolean {
  const found = recognizeFile(path, content)
  if (found !== undefined && (found.kind === undefined || !kinds.includes(found.kind)))
    throw createOtherKindError(path, found, expected)
  return found !== undefined
}

/**
 * Throws a MirrorError (usage) for a file of which more keys are unknown to its program than known. One known key is not enough:
 * many programs have a `log`.
 */
export function assertKnownKeys(
  path: string,
  content: unknown,
  { expected, keys }: Pick<ExpectedFile, 'expected'> & { readonly keys: ReadonlySet<string> },
): void {
  const presentKeys = Object.keys(asTable(content) ?? {})
  const unknown = presentKeys.filter((key) => !keys.has(key))
  if (unknown.length <= presentKeys.length - unknown.length) return
  const listed = unknown.slice(0, 5).join(', ')
  const why =
    unknown.length === presentKeys.length
      ? `it sets nothing but ${listed}`
      : `most of what it sets is unknown there: ${listed}`
  throw new MirrorError(`${path} is not ${expected}, so it is left alone: ${why}.`, {
    exit: exitCode.usage,
    hints: [`give ${expected} by --file`],
  })
}

function createOtherKindError(path: string, { is, hint }: RecognizedFile, expected: string): MirrorError {
  return new MirrorError(`${path} looks like ${is}, not like ${expected}. It is left alone.`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [] : [hint.replace('FILE', quoteShellWord(path))],
  })
}

/** Parses the YAML documents that are maps; none for invalid YAML. */
function parseDocuments(content: string): TomlTable[] {
  const parsed = parseAllDocuments(content, { prettyErrors: false, merge: true })
  if (!Array.isArray(parsed)) return []
  return parsed.flatMap((one) => {
    const map = one.errors.length > 0 ? undefined : asTable(toPlainValue(one))
    return map === undefined ? [] : [map]
  })
}

function toPlainValue(document: Document.Parsed): unknown {
  try {
    return document.toJS()
  } catch (error) {
    // Ignore a document with an alias without an anchor, or with endless aliases.
    if (error instanceof ReferenceError) return undefined
    throw error
  }
}

/**
 * Lists the keys that dockerd reads in daemon.json; it refuses all others.
 * https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
 */
export const dockerdKeys: ReadonlySet<string> = toSet(`
  allow-direct-routing allow-nondistributable-artifacts api-cors-header apparmor-profile authorization-plugins bip bip6 bridge
  bridge-accept-fwmark builder cdi-spec-dirs cgroup-parent cluster-advertise cluster-store cluster-store-opts containerd
  containerd-namespace containerd-plugins-namespace containerd-plugin-namespace cpu-rt-period cpu-rt-runtime
  cri-containerd data-root debug default-address-pools default-cgroupns-mode default-gateway default-gateway-v6
  default-ipc-mode default-network-opts default-runtime default-shm-size default-ulimits deprecated-key-path
  disable-legacy-registry dns dns-opts dns-search exec-opts exec-root experimental features firewall-backend
  fixed-cidr fixed-cidr-v6 graph group host host-gateway-ip host-gateway-ips hosts http-proxy https-proxy icc
  init init-path insecure-registries ip ip-forward ip-forward-no-drop ip-masq iptables ip6tables ipv6 isolation
  labels live-restore log-driver log-format log-level log-opts max-concurrent-downloads max-concurrent-uploads
  max-download-attempts metrics-addr min-api-version mtu network-control-plane-mtu network-diagnostic-port
  no-new-privileges no-proxy node-generic-resources nri-opts oom-score-adjust pidfile proxies raw-logs registry-mirrors
  root rootless runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts
  swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path
  userns-remap validate
`)

/**
 * Lists the keys that buildkitd reads at the root of its file.
 * https://github.com/moby/buildkit/blob/master/cmd/buildkitd/config/config.go
 */
export const buildkitdKeys: ReadonlySet<string> = toSet(`
  debug trace root insecure-entitlements log grpc otel cdi worker workers registry dns history frontend system
  provenanceEnvDir cache proxy
`)

/** Lists the keys that k3s reads at the root of a registries.yaml. https://docs.k3s.io/installation/private-registry */
export const registriesKeys: ReadonlySet<string> = toSet('mirrors configs auths')

function toSet(words: string): ReadonlySet<string> {
  return new Set(words.trim().split(/\s+/))
}

/** Begins every file that mirror writes whole. It tells users about the undo, and tells mirror its own files. */
export const mirrorHeader = '# Written by mirror. To take it back: mirror configure --undo\n'

/** Begins the files that mirror overwrites each time. */
export const ownFileHeader = `${mirrorHeader}# Changes are lost when it is written again: make them in a file of your own.\n`

/** Removes the header's lines from a text, whatever their line ends. */
export function removeMirrorHeader(text: string): string {
  const header = new Set(ownFileHeader.split('\n').filter(Boolean))
  const lines = text.split(/(?<=\n)/)
  return lines.filter((line) => !header.has(line.replace(/^\uFEFF/, '').trimEnd())).join('')
}

export function isWrittenByMirror(text: string): boolean {
  return text.includes(mirrorHeader.trimEnd())
}

/**
 * Names the copy of the mirror's CA that clients read. A client reads every .crt file in the folder of a host, so the user's own
 * certificates stay in use beside it.
 */
export const caFileName = 'mirror-ca.crt'

/**
 * Plans the CA copy at `path`: writes `ca` (PEM), or removes mirror's copy where `ca` is undefined. Throws a MirrorError (usage)
 * for a file of that name that mirror did not write.
 */
export function planCaFile(path: string, ca: string | undefined, files: FilesSnapshot): FileChange[] {
  const current = files.getText(path)
  const isOwn = current !== undefined && isWrittenByMirror(current)
  if (ca === undefined) return isOwn ? files.change(path, undefined) : []
  if (current === undefined || isOwn) return files.change(path, ownFileHeader + ca)
  throw new MirrorError(`${path} already exists and was not written by mirror, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`rename ${path}, then run the command again`],
  })
}

/** Returns whether the path is that of a CA copy. */
export function isCaFile(path: string): boolean {
  return /[^\\/]*$/.exec(path)?.[0] === caFileName
}

/**
 * Returns the hosts, with ports, for which a client that looks for certificates by host needs the CA. The client asks for none for
 * a registry on loopback.
 */
export function getHostsToTrust({ cache, registry }: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  const others = registry === undefined || isLoopbackUrl(registry) ? [] : [new URL(registry).host]
  return [...new Set([new URL(cache).host, ...others])]
}
