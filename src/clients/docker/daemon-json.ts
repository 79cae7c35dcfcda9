import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { temporaryFolder } from '../../lib/fs.ts'
import type { RunCommand } from '../../lib/process.ts'
import { isLoopback, majorAndMinor } from '../address.ts'
import { putEmptyList, putFirst, readJsonObject, takeOut } from '../edit/json.ts'
import { dockerdKeys, refuseOtherKinds, refuseUnknownKeys } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesNow, MirrorForClient } from '../types.ts'

const mirrorsKey = 'registry-mirrors'
const insecureKey = 'insecure-registries'

/** Until then BuildKit loses the scheme of a mirror's URL and tries HTTPS, unless the host is called insecure. */
const firstWithScheme = 28

const expected = 'a daemon.json of dockerd'

/** Puts the mirror before the mirrors that are there. https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file */
export function planDaemonJson(mirror: MirrorForClient, target: DockerTarget, files: FilesNow): ConfigPlan {
  const { daemonJson: path } = target
  const notes: string[] = []
  const current = files.text(path)
  const isKnown = current !== undefined && refuseOtherKinds(path, current, { kinds: ['daemon.json'], expected })
  const lists = current === undefined ? { [mirrorsKey]: [], [insecureKey]: [] } : readLists(path, current)
  let text = current ?? '{}\n'
  let wanted = current === undefined ? {} : readJsonObject(path, current)
  if (!isKnown) refuseUnknownKeys(path, wanted, { expected, keys: dockerdKeys })

  const mirrors = lists[mirrorsKey]
  const ours = mirrors.findIndex((url) => isSameUrl(url, mirror.cache))
  if (ours === -1) {
    refuseFlag('registry-mirror', mirrorsKey, target)
    text = putFirst(text, mirrorsKey, mirror.cache)
    wanted = { ...wanted, [mirrorsKey]: [mirror.cache, ...mirrors] }
    if (mirrors.length > 0) notes.push(`${mirrors.join(' and ')} stay, and are asked when the mirror fails.`)
  } else if (ours > 0)
    notes.push(`The mirror is in ${path} already; ${mirrors.slice(0, ours).join(' and ')} come first.`)

  const { host } = new URL(mirror.cache)
  if (needsInsecure(mirror.cache, target.version) && !lists[insecureKey].some((entry) => hostOf(entry) === host)) {
    refuseFlag('insecure-registry', insecureKey, target)
    text = putFirst(text, insecureKey, host)
    wanted = { ...wanted, [insecureKey]: [host, ...lists[insecureKey]] }
    notes.push(`${host} becomes one of the insecure-registries: builds would ask it by HTTPS otherwise.`)
  }
  if (isAskedByHttpOnly(mirror.cache, target.version))
    notes.push(`docker build before Docker 28 asks ${host} by HTTP alone, and goes on to Docker Hub.`)
  if (!isDeepStrictEqual(readJsonObject(path, text), wanted))
    throw new MirrorError(`${path} is written in a way that cannot be changed safely, so it is left alone.`, {
      exit: exitCode.usage,
      hints: [`add ${JSON.stringify(mirror.cache)} to "${mirrorsKey}" there by hand`],
    })
  return { changes: files.change(path, text), notes, todo: [] }
}

/** Takes the mirror out. */
export function stripDaemonJson({ cache }: { readonly cache: string }, path: string, files: FilesNow): FileChange[] {
  const text = files.text(path)
  return text === undefined ? [] : files.change(path, withoutMirror(cache, path, text, 'drop'))
}

/**
 * As a reload has to find the file to forget the mirror: dockerd goes on with what it had for a key that is missing, so that
 * lists without entries stand there as `[]`.
 */
export function forgetInDaemonJson(
  { cache }: { readonly cache: string },
  path: string,
  files: FilesNow,
  version: string | undefined,
): FileChange[] {
  const stripped = putEmptyList(withoutMirror(cache, path, files.text(path) ?? '{}\n', 'keep'), mirrorsKey)
  return files.change(path, needsInsecure(cache, version) ? putEmptyList(stripped, insecureKey) : stripped)
}

function withoutMirror(cache: string, path: string, text: string, emptied: 'drop' | 'keep'): string {
  readJsonObject(path, text)
  const isMirror = (item: unknown) => typeof item === 'string' && isSameUrl(item, cache)
  const isHost = (item: unknown) => typeof item === 'string' && hostOf(item) === new URL(cache).host
  return takeOut(takeOut(text, mirrorsKey, isMirror, emptied), insecureKey, isHost, emptied)
}

/** The mirrors that a daemon.json names, as they stand there; undefined when it says nothing of them. */
export function mirrorsIn(path: string, text: string): readonly string[] | undefined {
  return mirrorsKey in readJsonObject(path, text) ? readLists(path, text)[mirrorsKey] : undefined
}

/** The registries that a daemon.json calls insecure. */
export function insecureIn(path: string, text: string | undefined): readonly string[] {
  return text === undefined ? [] : readLists(path, text)[insecureKey].map(hostOf)
}

/** dockerd writes a slash at the end of what it was given. */
export function isSameUrl(one: string, other: string): boolean {
  return one.replace(/\/+$/, '').toLowerCase() === other.replace(/\/+$/, '').toLowerCase()
}

function readLists(path: string, text: string): Record<typeof mirrorsKey | typeof insecureKey, readonly string[]> {
  const object = readJsonObject(path, text)
  const listAt = (key: string): readonly string[] => {
    const list = object[key] ?? []
    if (Array.isArray(list) && list.every((item) => typeof item === 'string')) return list
    throw new MirrorError(
      `${path} is left alone: its "${key}" is not a list of texts, and dockerd would not take it.`,
      {
        exit: exitCode.usage,
        hints: [`Fix ${path} and run this again`],
      },
    )
  }
  return { [mirrorsKey]: listAt(mirrorsKey), [insecureKey]: listAt(insecureKey) }
}

/** dockerd does not start when the same thing is a flag and in its file. */
function refuseFlag(flag: string, key: string, { flags, daemonJson }: DockerTarget): void {
  const values = flags[flag]
  if (values === undefined) return
  throw new MirrorError(
    `dockerd was started with --${flag}=${values.join(` --${flag}=`)}: with "${key}" in ${daemonJson} as well it would not start again.`,
    {
      exit: exitCode.usage,
      hints: [
        'systemctl cat docker.service   (where the flag is likely to stand)',
        `Move it from there to "${key}" in ${daemonJson}, restart dockerd, and run this again`,
      ],
    },
  )
}

/** Loopback addresses are insecure by themselves. */
function needsInsecure(cache: string, version: string | undefined): boolean {
  if (!cache.startsWith('http:') || isLoopback(cache)) return false
  return (majorAndMinor(version)?.[0] ?? 0) < firstWithScheme
}

/** BuildKit takes a mirror on loopback for one without TLS until it is given URLs. */
function isAskedByHttpOnly(cache: string, version: string | undefined): boolean {
  return (
    cache.startsWith('https:') &&
    isLoopback(cache) &&
    (majorAndMinor(version)?.[0] ?? firstWithScheme) < firstWithScheme
  )
}

function hostOf(entry: string): string {
  return entry
    .replace(/^https?:\/\//, '')
    .replace(/\/$/, '')
    .toLowerCase()
}

/** The flags of dockerd that matter to whoever edits its files. */
const withValue: ReadonlySet<string> = new Set(['config-file', 'insecure-registry', 'registry-mirror'])

/** The values of those flags in a command line, by name without dashes; a flag that was not given has no key. */
export function dockerdFlags(args: readonly string[]): Readonly<Record<string, readonly string[]>> {
  const flags: Record<string, string[]> = {}
  for (const [at, arg] of args.entries()) {
    const [, name = '', , value] = /^--([a-z-]+)(=(.*))?$/s.exec(arg) ?? []
    if (!withValue.has(name)) continue
    const given = value ?? args[at + 1]
    if (given !== undefined) (flags[name] ??= []).push(given)
  }
  return flags
}

/**
 * Has dockerd itself read what its daemon.json would become. Throws MirrorError (usage) with what it says; quiet where there is no
 * dockerd, or one before 23.0, which cannot do it.
 */
export async function validateDaemonJson(
  { path, after }: Pick<FileChange, 'path' | 'after'>,
  program: string,
  runCommand: RunCommand,
): Promise<void> {
  if (after === undefined) return
  const folder = await temporaryFolder('mirror-validate-')
  try {
    const file = join(folder, 'daemon.json')
    await writeFile(file, after, { mode: 0o600 })
    const result = await runCommand(program, ['--validate', '--config-file', file], { timeoutMs: 10_000 })
    // Whatever else keeps it from looking says nothing about the file.
    if (result === undefined || result.exitCode === 0 || !result.stderr.includes(file)) return
    throw new MirrorError(
      `dockerd would not take ${path}, so it is left alone: ${lastLine(result.stderr, file, path)}`,
      {
        exit: exitCode.usage,
        hints: [`Fix ${path} and run this again`],
      },
    )
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

function lastLine(said: string, file: string, path: string): string {
  return said.trim().split('\n').at(-1)!.replaceAll(file, path)
}

/** One engine, as far as it was found out. */
export interface DockerTarget {
  readonly daemonJson: string
  /** Where it reads a folder per registry; undefined for an engine whose folders cannot be written from here. */
  readonly certsFolder: string | undefined
  /** `28.5.2`; undefined when nobody could tell. */
  readonly version: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** Whether the engine, and all else that reads its folders, knows the capability `referrers` of hosts.toml files. */
  readonly referrers?: boolean
  /** The mirrors of Docker Hub that the engine itself says it has. */
  readonly mirrors: readonly string[]
  /** Registries, and networks in CIDR form, that the engine itself says are insecure. */
  readonly insecure: readonly string[]
  /** What dockerd was given as flags, which its daemon.json may not repeat: values by the flag's name, without dashes. */
  readonly flags: Readonly<Record<string, readonly string[]>>
}

/** `mirrors` in daemon.json, which are for Docker Hub only; a folder per registry; `both` when nobody could tell. */
export type DockerForm = 'mirrors' | 'folders' | 'both'

/** The first version that asks the hosts.toml of a registry's folder: builds always, pulls with the containerd image store only. */
export const firstWithFolders = 28

/** Which form this engine understands. */
export function dockerForm({ certsFolder, version, imageStore }: DockerTarget): DockerForm {
  const major = majorAndMinor(version)?.[0]
  if (certsFolder === undefined || imageStore === 'classic' || (major !== undefined && major < firstWithFolders))
    return 'mirrors'
  return major === undefined || imageStore === undefined ? 'both' : 'folders'
}
