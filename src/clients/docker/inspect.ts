import { join } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { isAtLeast, isLoopbackUrl, parseVersion } from '../address.ts'
import { findHostsFolders, namesMirror, toFolderNames } from '../containerd/hosts-toml.ts'
import { inspectHostsFolders } from '../containerd/inspect-hosts.ts'
import { parseJsonFile } from '../edit/json.ts'
import { dockerdKeys } from '../files/kinds.ts'
import type { FilesSnapshot, Finding } from '../types.ts'
import { type DockerTarget, getDockerForm, getInsecureRegistries, getListedMirrors, isSameUrl } from './daemon-json.ts'

/** Finds the known faults of an engine's daemon.json and of its folders per registry. */
export function inspectDocker(
  cache: string | undefined,
  target: DockerTarget,
  files: FilesSnapshot,
): readonly Finding[] {
  const { certsFolder, version } = target
  const reader = {
    name: version === undefined ? 'dockerd' : `Docker ${version}`,
    referrers: version === undefined ? undefined : isAtLeast(version, 29, 1),
  }
  const reads = getDockerForm(target) !== 'mirrors'
  return [
    ...inspectDaemonJson(cache, target, files),
    ...(certsFolder !== undefined && reads ? inspectHostsFolders([certsFolder], reader, files, cache) : []),
    ...inspectFolders(cache, target, files),
  ]
}

function inspectDaemonJson(cache: string | undefined, target: DockerTarget, files: FilesSnapshot): readonly Finding[] {
  const { daemonJson: path, flags, version, mirrors: running } = target
  const text = files.getText(path)
  // Docker 23 brought this flag.
  const canValidate = version === undefined || isAtLeast(version, 23, 0)
  const validate = `dockerd --validate --config-file ${path}`
  let content: Record<string, unknown>
  let mirrors: readonly string[]
  let insecure: readonly string[]
  try {
    content = text === undefined ? {} : parseJsonFile(path, text)
    mirrors = text === undefined ? [] : (getListedMirrors(path, text) ?? [])
    insecure = getInsecureRegistries(path, text)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const why = error.message
      .replace(/, so it is left alone/, '')
      .replace(`${path} was left unchanged: its`, `In ${path},`)
      .replace(/\.$/, '')
    // Go, in which dockerd is written, accepts a key that stands in JSON twice.
    if (why.endsWith(' stands there twice'))
      return [
        toFinding('syntax', 'warn', `${why}, and dockerd takes the last one.`, {
          advice: `Remove one of the two from ${path}.`,
        }),
      ]
    const saw = `${why}. dockerd keeps its old settings, and does not start again.`
    return [
      toFinding('syntax', 'fail', saw, {
        advice: `Correct ${path}${canValidate ? `; to test it: ${validate}` : '.'}`,
      }),
    ]
  }
  const findings: Finding[] = []
  const unknown = Object.keys(content).filter((key) => !dockerdKeys.has(key))
  if (unknown.length > 0)
    findings.push(
      toFinding(
        'syntax',
        'warn',
        `${path} has keys that dockerd may not know, which it refuses: ${unknown.join(', ')}.`,
        {
          advice: canValidate ? `Test it: ${validate}` : `Correct or remove these keys in ${path}.`,
        },
      ),
    )
  for (const url of mirrors) {
    const why = describeMirrorFault(url)
    if (why !== undefined)
      findings.push(
        toFinding('url', 'fail', `${path} has the mirror ${url} ${why}, so dockerd may reject the whole file.`, {
          advice: `Write the mirror as scheme, host and port only: http://127.0.0.1:5055`,
        }),
      )
  }
  const at = cache === undefined ? -1 : mirrors.findIndex((url) => isSameUrl(url, cache))
  if (at > 0)
    findings.push(
      toFinding('order', 'warn', `dockerd asks ${mirrors.slice(0, at).join(' and ')} before the mirror.`, {
        advice: `Put ${cache} first in "registry-mirrors" of ${path}.`,
      }),
    )
  const settings = [
    ['registry-mirror', 'registry-mirrors'],
    ['insecure-registry', 'insecure-registries'],
  ] as const
  const twice = settings.filter(([flag, key]) => flags[flag] !== undefined && key in content)
  for (const [flag, key] of twice)
    findings.push(
      toFinding(
        'flags',
        'fail',
        `dockerd was started with --${flag}, and ${path} has "${key}" as well: it ignores a reload, and does not start again.`,
        {
          advice: `Move the value of --${flag} from the unit (systemctl cat docker.service) to "${key}" in ${path}.`,
        },
      ),
    )
  if (cache !== undefined && at !== -1 && needsInsecure(cache, version)) {
    const { host } = new URL(cache)
    if (!insecure.includes(host) && !target.insecure.includes(host))
      findings.push(
        toFinding(
          'insecure',
          'fail',
          `${host} is not in "insecure-registries", so docker build contacts the mirror by HTTPS.`,
          'configure',
        ),
      )
  }
  const isLeft = cache !== undefined && at === -1 && running.some((url) => isSameUrl(url, cache))
  if (isLeft && !('registry-mirrors' in content) && flags['registry-mirror'] === undefined && !hasFolders(target))
    findings.push(
      toFinding(
        'empty-key',
        'warn',
        `dockerd uses ${cache}, which ${path} does not name: a reload ignores a key that is gone.`,
        {
          command: 'sudo systemctl restart docker',
        },
      ),
    )
  return findings
}

function toFinding(fault: string, state: Finding['state'], saw: string, mend: Finding['mend']): Finding {
  return { fault: `docker.${fault}`, state, saw, mend }
}

function hasFolders(target: DockerTarget): boolean {
  return getDockerForm(target) === 'folders'
}

function inspectFolders(cache: string | undefined, target: DockerTarget, files: FilesSnapshot): readonly Finding[] {
  const { certsFolder, daemonJson } = target
  if (certsFolder === undefined) return []
  const folders = findHostsFolders(certsFolder, files).filter(({ hosts }) => hosts !== undefined)
  const findings: Finding[] = []
  if (getDockerForm(target) === 'mirrors') {
    const unread = cache === undefined ? undefined : folders.find(({ hosts }) => namesMirror(hosts!, cache))
    const isListed = (readMirrors(daemonJson, files) ?? []).some((url) => cache !== undefined && isSameUrl(url, cache))
    if (unread !== undefined && !isListed)
      findings.push({
        fault: 'docker.ignored-folder',
        state: 'fail',
        saw: `${join(certsFolder, unread.name, 'hosts.toml')} names the mirror, and this engine (${target.version ?? 'unknown version'}, ${target.imageStore ?? 'unknown'} image store) does not read it.`,
        mend: 'configure',
      })
    return findings
  }
  const insecure = new Set(readInsecure(daemonJson, files))
  const hasDefault = folders.some(({ name }) => name === '_default')
  for (const host of insecure) {
    const own = folders.find(({ name }) => toFolderNames(host).includes(name))
    if (own === undefined && !hasDefault) continue
    findings.push({
      fault: 'docker.ignored-insecure',
      state: 'warn',
      saw: `${host} is in "insecure-registries" of ${daemonJson}, which dockerd ignores because of ${join(certsFolder, own?.name ?? '_default', 'hosts.toml')}.`,
      mend: {
        advice: `Write [host."http://${host}"] in a hosts.toml of its own: ${join(certsFolder, host, 'hosts.toml')}`,
      },
    })
  }
  return findings
}

function readMirrors(path: string, files: FilesSnapshot): readonly string[] | undefined {
  return readQuietly(path, files, (text) => getListedMirrors(path, text))
}

function readInsecure(path: string, files: FilesSnapshot): readonly string[] {
  return readQuietly(path, files, (text) => getInsecureRegistries(path, text)) ?? []
}

/** Returns undefined for an absent file and for a broken one, which `docker.syntax` reports. */
function readQuietly<T>(path: string, files: FilesSnapshot, read: (text: string) => T): T | undefined {
  try {
    const text = files.getText(path)
    return text === undefined ? undefined : read(text)
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

function describeMirrorFault(text: string): string | undefined {
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) return 'without http:// or https://'
  const { pathname, search, hash, username } = new URL(text)
  if (pathname !== '/') return 'with a path'
  if (search !== '' || hash !== '') return 'with a query'
  return username === '' ? undefined : 'with a user name'
}

/** Reports whether BuildKit of this version drops the scheme of a plain mirror, and so needs to know that it is insecure. */
function needsInsecure(cache: string, version: string | undefined): boolean {
  const major = parseVersion(version)?.[0]
  return cache.startsWith('http:') && !isLoopbackUrl(cache) && major !== undefined && major < 28
}
