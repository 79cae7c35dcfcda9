import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { createTemporaryFolder } from '../../lib/fs.ts'
import type { RunCommand } from '../../lib/process.ts'
import { isLoopbackUrl, parseVersion } from '../address.ts'
import { addEmptyJsonList, prependJsonItem, parseJsonFile, removeJsonItems } from '../edit/json.ts'
import { dockerdKeys, assertFileKind, assertKnownKeys } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'

const mirrorsKey = 'registry-mirrors'
const insecureKey = 'insecure-registries'

/**
 * Is the first major version whose BuildKit keeps the scheme of a mirror's URL. Before it, BuildKit tries HTTPS unless the host is
 * insecure.
 */
const minSchemeMajor = 28

const expected = 'a daemon.json of dockerd'

/** Adds the mirror before the existing mirrors. Throws MirrorError (usage) for a file or flags that leave no safe way. https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file */
export function planDaemonJson(mirror: MirrorForClient, target: DockerTarget, files: FilesSnapshot): ConfigPlan {
  const { daemonJson: path } = target
  const notes: string[] = []
  const current = files.getText(path)
  const isKnown = current !== undefined && assertFileKind(path, current, { kinds: ['daemon.json'], expected })
  const lists = current === undefined ? { [mirrorsKey]: [], [insecureKey]: [] } : readLists(path, current)
  let text = current ?? '{}\n'
  let expectedContent = current === undefined ? {} : parseJsonFile(path, current)
  if (!isKnown) assertKnownKeys(path, expectedContent, { expected, keys: dockerdKeys })

  const mirrors = lists[mirrorsKey]
  const index = mirrors.findIndex((url) => isSameUrl(url, mirror.cache))
  if (index === -1) {
    refuseIfFlag('registry-mirror', mirrorsKey, target)
    text = prependJsonItem(text, mirrorsKey, mirror.cache)
    expectedContent = { ...expectedContent, [mirrorsKey]: [mirror.cache, ...mirrors] }
    if (mirrors.length > 0)
      notes.push(`Kept as further mirrors, which dockerd asks when this one fails: ${mirrors.join(', ')}.`)
  } else if (index > 0)
    notes.push(`The mirror is in ${path} already; ${mirrors.slice(0, index).join(' and ')} come first.`)

  const { host } = new URL(mirror.cache)
  if (needsInsecure(mirror.cache, target.version) && !lists[insecureKey].some((entry) => stripScheme(entry) === host)) {
    refuseIfFlag('insecure-registry', insecureKey, target)
    text = prependJsonItem(text, insecureKey, host)
    expectedContent = { ...expectedContent, [insecureKey]: [host, ...lists[insecureKey]] }
    notes.push(`${host} is added to insecure-registries, because builds would use HTTPS otherwise.`)
  }
  if (isAskedByHttpOnly(mirror.cache, target.version))
    notes.push(`docker build before Docker 28 contacts ${host} by HTTP only, fails, and falls back to Docker Hub.`)
  if (!isDeepStrictEqual(parseJsonFile(path, text), expectedContent))
    throw new MirrorError(`${path} cannot be edited safely because of its layout, so it was left unchanged.`, {
      exit: exitCode.usage,
      hints: [`Add ${JSON.stringify(mirror.cache)} to "${mirrorsKey}" there by hand`],
    })
  return { changes: files.change(path, text), notes, todo: [] }
}

/** Removes the mirror. */
export function stripDaemonJson(
  { cache }: { readonly cache: string },
  path: string,
  files: FilesSnapshot,
): FileChange[] {
  const text = files.getText(path)
  return text === undefined ? [] : files.change(path, withoutMirror(cache, path, text, 'drop'))
}

/**
 * Removes the mirror and keeps emptied lists as `[]`. A reload of dockerd then drops the mirror; for a missing key, dockerd would
 * keep its current value.
 */
export function emptyDaemonJsonLists(
  { cache }: { readonly cache: string },
  path: string,
  files: FilesSnapshot,
  version: string | undefined,
): FileChange[] {
  const stripped = addEmptyJsonList(withoutMirror(cache, path, files.getText(path) ?? '{}\n', 'keep'), mirrorsKey)
  return files.change(path, needsInsecure(cache, version) ? addEmptyJsonList(stripped, insecureKey) : stripped)
}

function withoutMirror(cache: string, path: string, text: string, emptied: 'drop' | 'keep'): string {
  parseJsonFile(path, text)
  const isMirror = (item: unknown) => typeof item === 'string' && isSameUrl(item, cache)
  const isHost = (item: unknown) => typeof item === 'string' && stripScheme(item) === new URL(cache).host
  return removeJsonItems(removeJsonItems(text, mirrorsKey, isMirror, emptied), insecureKey, isHost, emptied)
}

/** Returns the mirrors of a daemon.json as written; undefined without the key. Throws MirrorError (usage) for a broken file. */
export function getListedMirrors(path: string, text: string): readonly string[] | undefined {
  return mirrorsKey in parseJsonFile(path, text) ? readLists(path, text)[mirrorsKey] : undefined
}

/** Returns the insecure registries of a daemon.json, in lower case and without scheme. */
export function getInsecureRegistries(path: string, text: string | undefined): readonly string[] {
  return text === undefined ? [] : readLists(path, text)[insecureKey].map(stripScheme)
}

/** Compares without a slash at the end, because dockerd reports URLs with one. */
export function isSameUrl(one: string, other: string): boolean {
  return one.replace(/\/+$/, '').toLowerCase() === other.replace(/\/+$/, '').toLowerCase()
}

function readLists(path: string, text: string): Record<typeof mirrorsKey | typeof insecureKey, readonly string[]> {
  const object = parseJsonFile(path, text)
  const listAt = (key: string): readonly string[] => {
    const list = object[key] ?? []
    if (Array.isArray(list) && list.every((item) => typeof item === 'string')) return list
    throw new MirrorError(
      `${path} was left unchanged: its "${key}" is not a list of strings, which dockerd requires.`,
      {
        exit: exitCode.usage,
        hints: [`Fix ${path}, then run the command again`],
      },
    )
  }
  return { [mirrorsKey]: listAt(mirrorsKey), [insecureKey]: listAt(insecureKey) }
}

/** Throws MirrorError (usage) for a flag of the same setting, because dockerd does not start with both a flag and a key. */
function refuseIfFlag(flag: string, key: string, { flags, daemonJson }: DockerTarget): void {
  const values = flags[flag]
  if (values === undefined) return
  throw new MirrorError(
    `dockerd was started with --${flag}=${values.join(` --${flag}=`)}. With "${key}" in ${daemonJson} as well, it would not start again.`,
    {
      exit: exitCode.usage,
      hints: [
        'systemctl cat docker.service   (the likely place of the flag)',
        `Move the flag to "${key}" in ${daemonJson}, restart dockerd, then run the command again`,
      ],
    },
  )
}

/** Reports whether dockerd needs to be told that this HTTP mirror is insecure; on loopback it treats one so by itself. */
function needsInsecure(cache: string, version: string | undefined): boolean {
  if (!cache.startsWith('http:') || isLoopbackUrl(cache)) return false
  return (parseVersion(version)?.[0] ?? 0) < minSchemeMajor
}

/** Reports whether the mirror is one with HTTPS on loopback, which BuildKit before `minSchemeMajor` contacts by HTTP. */
function isAskedByHttpOnly(cache: string, version: string | undefined): boolean {
  return (
    cache.startsWith('https:') &&
    isLoopbackUrl(cache) &&
    (parseVersion(version)?.[0] ?? minSchemeMajor) < minSchemeMajor
  )
}

function stripScheme(entry: string): string {
  return entry
    .replace(/^https?:\/\//, '')
    .replace(/\/$/, '')
    .toLowerCase()
}

/** Holds the flags of dockerd that conflict with its files or move them. */
const relevantFlags: ReadonlySet<string> = new Set(['config-file', 'insecure-registry', 'registry-mirror'])

/** Returns the values of the relevant flags in a command line, by name without dashes; an absent flag has no key. */
export function parseDockerdFlags(args: readonly string[]): Readonly<Record<string, readonly string[]>> {
  const flags: Record<string, string[]> = {}
  for (const [at, arg] of args.entries()) {
    const [, name = '', , value] = /^--([a-z-]+)(=(.*))?$/s.exec(arg) ?? []
    if (!relevantFlags.has(name)) continue
    const given = value ?? args[at + 1]
    if (given !== undefined) (flags[name] ??= []).push(given)
  }
  return flags
}

/**
 * Validates the new daemon.json by dockerd itself. Throws MirrorError (usage) with the last line of its output. Does nothing
 * without dockerd, or before Docker 23.0, which has no `--validate`.
 */
export async function validateDaemonJson(
  { path, after }: Pick<FileChange, 'path' | 'after'>,
  program: string,
  runCommand: RunCommand,
): Promise<void> {
  if (after === undefined) return
  const folder = await createTemporaryFolder('mirror-validate-')
  try {
    const file = join(folder, 'daemon.json')
    await writeFile(file, after, { mode: 0o600 })
    const result = await runCommand(program, ['--validate', '--config-file', file], { timeoutMs: 10_000 })
    // Ignore a failure that does not name the file: dockerd could not validate it.
    if (result === undefined || result.exitCode === 0 || !result.stderr.includes(file)) return
    throw new MirrorError(
      `dockerd rejects the new ${path}, so it was left unchanged: ${getLastLine(result.stderr, file, path)}`,
      {
        exit: exitCode.usage,
        hints: [`Fix ${path}, then run the command again`],
      },
    )
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

function getLastLine(output: string, file: string, path: string): string {
  return output.trim().split('\n').at(-1)!.replaceAll(file, path)
}

/** Holds the properties of an engine that decide its plan. */
export interface DockerTarget {
  readonly daemonJson: string
  /** Holds the parent of its folders per registry; undefined when they are not on this machine. */
  readonly certsFolder: string | undefined
  /** Holds the version, as `28.5.2`; undefined when unknown. */
  readonly version: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** Is true when the engine and all other readers of its folders accept the capability `referrers` in hosts.toml. */
  readonly referrers?: boolean
  /** Holds the mirrors of Docker Hub that the engine reports. */
  readonly mirrors: readonly string[]
  /** Holds the insecure registries, and networks in CIDR form, that the engine reports. */
  readonly insecure: readonly string[]
  /** Holds the flags of dockerd, which its daemon.json must not repeat: values by name without dashes. */
  readonly flags: Readonly<Record<string, readonly string[]>>
}

/**
 * Distinguishes `mirrors`: in daemon.json, for Docker Hub only; `folders`: one per registry; `both`: when the engine's form is
 * unknown.
 */
export type DockerForm = 'mirrors' | 'folders' | 'both'

/**
 * Is the first major version that reads the hosts.toml of a registry's folder: for builds always, for pulls with the containerd
 * image store.
 */
export const minFoldersMajor = 28

/** Returns the form that the engine reads. */
export function getDockerForm({ certsFolder, version, imageStore }: DockerTarget): DockerForm {
  const major = parseVersion(version)?.[0]
  if (certsFolder === undefined || imageStore === 'classic' || (major !== undefined && major < minFoldersMajor))
    return 'mirrors'
  return major === undefined || imageStore === undefined ? 'both' : 'folders'
}
