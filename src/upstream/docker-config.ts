import { readFile, stat } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Clock } from '../lib/time.ts'
import { errnoOf } from '../lib/errors.ts'
import { isObject } from '../lib/json.ts'
import { unusableCredential, type Credential } from './credential.ts'
import { credentialIn, findAuth, member, serverOf } from './docker-auth.ts'

/** What Docker's config.json says about one registry. */
export interface DockerEntry {
  /** `docker-credential-<name>` has it, asked about `server`. `key`: where it is named, `credHelpers."ghcr.io"`. */
  readonly helper: { readonly name: string; readonly server: string; readonly key: string } | undefined
  /** The credential that stands in the file itself. Docker takes no notice of it where there is a helper. */
  readonly inline: Credential | undefined
  /** Wall clock, ms: from then on it is as good as none. Only files that mirrors hand over say so. */
  readonly inlineUntil?: number | undefined
}

/** Reads a registry's entry; looks at the file at most once a second. */
export interface DockerConfig {
  /** The same object as long as the file does not change. Throws an UpstreamError (denied) for a file that cannot be used. */
  entry(): Promise<DockerEntry>
}

/** Our own member of an entry of `auths`; Docker ignores it. ISO 8601. */
export const untilKey = 'mirrorUntil'

const lookAgainMs = 1000

/** Where Docker keeps its config.json. */
export function dockerConfigPath(env: Readonly<Record<string, string | undefined>>): string {
  return join(env['DOCKER_CONFIG'] || join(homedir(), '.docker'), 'config.json')
}

/** Opens the config.json at `path` for one registry; a missing file is an empty one. */
export function openDockerConfig(path: string, host: string, clock: Clock): DockerConfig {
  let entry = noEntry
  let version: string | undefined
  let check: Promise<DockerEntry> | undefined
  let checkedAt = 0

  async function reload(): Promise<DockerEntry> {
    try {
      const found = await versionOf(path)
      if (found !== version) {
        entry = found === undefined ? noEntry : parseDockerConfig(await readFile(path, 'utf8'), host)
        version = found
      }
      return entry
    } catch (error) {
      const code = errnoOf(error)
      throw code === undefined ? error : unusableCredential(host, `${path} cannot be read (${code})`)
    }
  }

  return {
    entry() {
      if (!check || clock.monotonic() - checkedAt >= lookAgainMs) {
        checkedAt = clock.monotonic()
        check = reload()
      }
      return check
    },
  }
}

const noEntry: DockerEntry = { helper: undefined, inline: undefined }

/**
 * Reads the text of a config.json by Docker's rules: an entry of `credHelpers` decides alone, and an empty one means the file;
 * else `credsStore` does, else the file. Throws an UpstreamError that quotes nothing of the text.
 * https://github.com/docker/cli/blob/master/cli/config/configfile/file.go
 */
function parseDockerConfig(text: string, host: string): DockerEntry {
  const config = text.trim() === '' ? {} : asObject(parseJson(text, host))
  const auth = findAuth(asObject(member(config, 'auths')), host)
  const inline = credentialIn(asObject(auth))
  const helper = helperOf(config, host)
  if (inline === 'broken' && !helper) throw broken(host, 'its auth entry is not base64 of user:password')
  return {
    helper,
    inline: inline === 'broken' ? undefined : inline,
    inlineUntil: timeOf(asObject(auth)[untilKey]),
  }
}

function helperOf(config: Record<string, unknown>, host: string): DockerEntry['helper'] {
  const server = serverOf(host)
  const [perRegistry, store] = [asObject(member(config, 'credHelpers')), member(config, 'credsStore')]
  // Docker reads no other names of Docker Hub here, but podman does: they count where Docker would find nothing.
  const names = [server, ...(store ? [] : ['docker.io', 'index.docker.io'].filter(() => host === 'docker.io'))]
  const named = names.find((name) => Object.hasOwn(perRegistry, name))
  const name = named === undefined ? store : perRegistry[named]
  if (typeof name !== 'string' || name === '') return undefined
  const key = named === undefined ? 'credsStore' : `credHelpers."${named}"`
  return { name: checkedHelper(name, host), server, key }
}

async function versionOf(path: string): Promise<string | undefined> {
  try {
    // What is handed over comes out of an archive: always of the same time, mostly of the same size, and in the same inode.
    const { mtimeMs, ctimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${ctimeMs} ${size} ${ino}`
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

function timeOf(value: unknown): number | undefined {
  const time = typeof value === 'string' ? Date.parse(value) : Number.NaN
  return Number.isNaN(time) ? undefined : time
}

function checkedHelper(name: string, host: string): string {
  if (!/^[\w.-]+$/.test(name)) throw broken(host, 'it names a credential helper that cannot be a program')
  return name
}

function parseJson(text: string, host: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    // The parser's own message quotes the text.
    throw broken(host, 'it is not valid JSON')
  }
}

function asObject(value: unknown): Record<string, unknown> {
  return isObject(value) ? value : {}
}

const broken = (host: string, why: string) => unusableCredential(host, `Docker's config.json was read, but ${why}`)
