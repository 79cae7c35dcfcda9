import { access, constants, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { stringify } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { getProgramVersion } from '../address.ts'
import { pullByCrictl, pullTimeoutMs } from '../containerd/cri.ts'
import { getLocalRegistryName } from '../containerd/hosts-toml.ts'
import {
  addYamlItem,
  addYamlKey,
  readYamlText,
  removeFromYaml,
  createYamlError,
  type YamlText,
  getYamlValue,
} from '../edit/yaml.ts'
import {
  planCaFile,
  caFileName,
  isWrittenByMirror,
  assertFileKind,
  assertKnownKeys,
  registriesKeys,
  mirrorHeader,
} from '../files/kinds.ts'
import { localFiles } from '../files/local.ts'
import { inspectRegistriesYaml } from './registries-yaml.ts'
import type {
  ClientAdapter,
  ConfigTarget,
  ClientReload,
  FileChange,
  FilesSnapshot,
  Finding,
  Machine,
  MirrorForClient,
  Observation,
} from '../types.ts'

/** Locates the file of the mirror's CA. */
export interface CaLocation {
  /** Holds its path in the target's files. */
  readonly path: string
  /** Holds its path as k3s reads it. */
  readonly name: string
}

/** Holds the configuration folder of k3s in a node. */
export const k3sFolder = '/etc/rancher/k3s'

/**
 * Lists the user's templates of config.toml, with the plugin whose section must set `config_path`; the first is for containerd 1.x.
 */
const k3sTemplates = [
  ['config.toml.tmpl', 'io.containerd.grpc.v1.cri'],
  ['config-v3.toml.tmpl', 'io.containerd.cri.v1.images'],
] as const

/** Describes the templates that make containerd ignore registries.yaml, a sentence each. https://docs.k3s.io/advanced#configuring-containerd */
export function describeTemplates(
  folder: string,
  files: FilesSnapshot,
  join: (...parts: string[]) => string,
): string[] {
  return k3sTemplates.flatMap(([name, plugin]) => {
    const path = join(folder, name)
    const text = files.getText(path)
    if (text === undefined || /\{\{-?\s*template\s+"base"/.test(text)) return []
    const section = text.split(/^\s*(?=\[)/m).find((part) => part.includes(plugin) && /^\[[^\]]*registry/.test(part))
    if (section !== undefined && /^\s*config_path\s*=/m.test(section)) return []
    return [
      `${path} replaces the config.toml of k3s and sets no config_path for ${plugin}, so registries.yaml has no effect. ` +
        'Begin it with {{ template "base" . }}.',
    ]
  })
}

/** Holds the changes of a registries.yaml and the CA, and the notes about them. */
export interface RegistriesPlan {
  readonly changes: FileChange[]
  readonly notes: string[]
}

const expected = 'a registries.yaml'

const restartNote = 'k3s reads it at its start: systemctl restart k3s (k3s-agent on an agent)'

/** Names the entry for each registry without an entry of its own. */
const everyRegistry = '*'

/**
 * Plans the registries.yaml of k3s and k3d: the mirror before all other endpoints of each registry that it serves. Throws
 * MirrorError (usage) for a file that cannot be changed safely. https://docs.k3s.io/installation/private-registry
 */
export function planRegistries(
  mirror: MirrorForClient,
  path: string,
  caLocation: CaLocation,
  files: FilesSnapshot,
): RegistriesPlan {
  const { changes, notes } = planRegistriesFile(mirror, path, caLocation, files)
  return { changes: [...changes, ...planCaFile(caLocation.path, mirror.ca, files)], notes }
}

function planRegistriesFile(
  mirror: MirrorForClient,
  path: string,
  { name: caName }: CaLocation,
  files: FilesSnapshot,
): RegistriesPlan {
  const { cache, registry } = mirror
  const hostsToTrust = mirror.ca === undefined ? [] : getHosts(mirror)
  const alias = registry === undefined ? undefined : getLocalRegistryName(registry)
  const newContent = {
    mirrors: {
      [everyRegistry]: { endpoint: [cache] },
      ...(alias !== undefined && { [alias]: { endpoint: [registry] } }),
    },
    ...(hostsToTrust.length > 0 && {
      configs: Object.fromEntries(hostsToTrust.map((host) => [host, { tls: { ca_file: caName } }])),
    }),
  }
  const before = files.getText(path)
  const isKnown = assertFileKind(path, before ?? '', { kinds: ['registries.yaml'], expected })
  const yaml = readYamlText(before ?? '', path)
  if (!isKnown) assertKnownKeys(path, getYamlValue(yaml), { expected, keys: registriesKeys })
  if (getYamlValue(yaml) === null || isAllOwn(yaml, caName)) {
    const [above, below] = splitAtHeader(yaml.text)
    const kept = `${above}${getYamlValue(yaml) === null ? below : ''}`.replace(/[^\n]$/, '$&\n')
    return { changes: files.change(path, `${kept}${mirrorHeader}${stringify(newContent)}`), notes: [] }
  }
  const own = Object.keys(getMirrors(yaml)).filter((name) => name !== everyRegistry && name !== alias)
  const served = own.filter((name) => mirror.registries.includes(name))
  const notes: string[] = []
  let after = addEndpoint(yaml, everyRegistry, cache)
  for (const name of served) {
    if (hasRewrite(after, name))
      notes.push(`${name} keeps its own endpoints, because the mirror would not find the rewritten names.`)
    else after = addEndpoint(after, name, cache)
  }
  const others = own.filter((name) => !served.includes(name))
  if (others.length > 0)
    notes.push(
      `${others.join(', ')} ${others.length === 1 ? 'keeps its' : 'keep their'} own endpoints, because the mirror does not serve them (see upstreams in mirror.yaml).`,
    )
  if (alias !== undefined && registry !== undefined) {
    if (getMirrors(after)[alias] === undefined) after = addEndpoint(after, alias, registry)
    else if (!getEndpoints(after, alias).includes(registry))
      notes.push(`${alias} is already another registry of yours; it stays.`)
  }
  for (const host of hostsToTrust) {
    const current = getYamlValue(after, getCaKey(host))
    if (current === undefined) after = addYamlKey(after, getCaKey(host), caName)
    else if (current !== caName)
      notes.push(`${host} keeps its own ca_file (${JSON.stringify(current)}), which must contain the mirror's CA.`)
  }
  return { changes: files.change(path, after.text), notes }
}

/** Returns the hosts, with port, of the cache and the registry. */
function getHosts({ cache, registry }: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  return [...new Set([cache, ...(registry === undefined ? [] : [registry])].map((url) => new URL(url).host))]
}

function getCaKey(host: string): [string, string, string, string] {
  return ['configs', host, 'tls', 'ca_file']
}

/** Implements ConfigTarget.strip. */
export function stripRegistries(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  path: string,
  caLocation: CaLocation,
  files: FilesSnapshot,
): FileChange[] {
  const { cache, registry } = mirror
  const ca = planCaFile(caLocation.path, undefined, files)
  const before = files.getText(path)
  if (before === undefined) return ca
  let yaml = readYamlText(before, path)
  for (const name of Object.keys(getMirrors(yaml))) {
    for (const url of [cache, registry]) {
      const at = getEndpoints(yaml, name).indexOf(url)
      if (at !== -1) yaml = removeFromYaml(yaml, ['mirrors', name, 'endpoint', at])
    }
  }
  for (const host of getHosts(mirror))
    if (getYamlValue(yaml, getCaKey(host)) === caLocation.name) yaml = removeFromYaml(yaml, getCaKey(host))
  const isEmpty = getYamlValue(yaml) === null && yaml.text.trim() === mirrorHeader.trim()
  return [...files.change(path, isEmpty ? undefined : yaml.text), ...ca]
}

function addEndpoint(yaml: YamlText, name: string, url: string): YamlText {
  if (hasRewrite(yaml, name))
    throw createYamlError(
      yaml,
      ['mirrors', name],
      'this entry rewrites names, and the mirror would not find the rewritten names',
    )
  if (getMirrors(yaml)[name] === undefined) return addYamlKey(yaml, ['mirrors', name], { endpoint: [url] })
  return getEndpoints(yaml, name).includes(url) ? yaml : addYamlItem(yaml, ['mirrors', name, 'endpoint'], url, 'start')
}

/** Reports whether the file has only content that mirror wrote, for any address; it can be replaced then. */
function isAllOwn(yaml: YamlText, caName: string): boolean {
  const value = getYamlValue(yaml)
  const [, below] = splitAtHeader(yaml.text)
  // Keep a user's comment, which would be lost.
  if (!isWrittenByMirror(yaml.text) || below.includes('#') || typeof value !== 'object' || value === null) return false
  const entries = Object.entries(getMirrors(yaml))
  const configs = Object.values(getYamlValue(yaml, ['configs']) ?? {})
  return (
    Object.keys(value).every((key) => key === 'mirrors' || key === 'configs') &&
    configs.every((config) => isDeepStrictEqual(config, { tls: { ca_file: caName } })) &&
    entries.every(([name, entry]) => {
      const isOwn = name === everyRegistry || /^localhost:\d+$/.test(name)
      return isOwn && Object.keys(entry ?? {}).join() === 'endpoint' && getEndpoints(yaml, name).length === 1
    })
  )
}

/** Splits the text at mirror's header line; without that line, all of it is above. */
function splitAtHeader(text: string): [above: string, below: string] {
  const [above = '', below = ''] = text.split(mirrorHeader.trimEnd(), 2)
  return [above, below.replace(/^\r?\n/, '')]
}

function getMirrors(yaml: YamlText): Readonly<Record<string, object | null>> {
  const mirrors = getYamlValue(yaml, ['mirrors']) ?? {}
  if (typeof mirrors !== 'object' || Array.isArray(mirrors)) throw createYamlError(yaml, ['mirrors'], 'expected a map')
  return mirrors as Record<string, object | null>
}

function getEndpoints(yaml: YamlText, name: string): unknown[] {
  const endpoints = getYamlValue(yaml, ['mirrors', name, 'endpoint']) ?? []
  if (!Array.isArray(endpoints)) throw createYamlError(yaml, ['mirrors', name, 'endpoint'], 'expected a list')
  return endpoints
}

function hasRewrite(yaml: YamlText, name: string): boolean {
  return Object.keys(getYamlValue(yaml, ['mirrors', name, 'rewrite']) ?? {}).length > 0
}

/** Configures k3s on this machine. https://docs.k3s.io/installation/private-registry */
export const k3sAdapter: ClientAdapter = {
  client: 'k3s',
  summary: 'k3s: registries.yaml',

  async find(machine) {
    return getProgramVersion(machine, 'k3s', '--version')
  },

  async findTargets(machine) {
    return [createTarget(machine, await listReadableTemplates(machine))]
  },

  restoreTarget: (machine) => createTarget(machine, []),
}

const getTemplatesFolder = ({ root }: Machine) =>
  join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd')

/** Lists the templates that this user can read. Only root can read them by default, and a plan is possible without them. */
async function listReadableTemplates(machine: Machine): Promise<string[]> {
  const paths = k3sTemplates.map(([name]) => join(getTemplatesFolder(machine), name))
  const readable = await Promise.all(paths.map((path) => ifVisible(access(path, constants.R_OK).then(() => path))))
  return readable.filter((path) => path !== undefined)
}

function createTarget(machine: Machine, templates: readonly string[]): ConfigTarget {
  const { root, runCommand } = machine
  const path = join(root, k3sFolder, 'registries.yaml')
  const ca = { path: join(root, k3sFolder, caFileName), name: `${k3sFolder}/${caFileName}` }
  return {
    id: 'system',
    title: `system (${path})`,
    details: { scope: 'system' },
    location: { in: 'host' },
    files: localFiles,
    inputs: { files: [path, ca.path, ...templates], trees: [] },
    plan(mirror, files) {
      const { changes, notes } = planRegistries(mirror, path, ca, files)
      const todo = [
        ...(changes.length === 0 ? [] : [restartNote]),
        ...(mirror.fallback
          ? []
          : ['start k3s with --disable-default-registry-endpoint, or it falls back to the origin']),
      ]
      return { changes, notes: [...notes, ...describeTemplates(getTemplatesFolder(machine), files, join)], todo }
    },
    strip: (mirror, files) => stripRegistries(mirror, path, ca, files),
    inspect: (cache, files) => [
      ...inspectRegistriesYaml(path, files.getText(path), cache),
      ...describeTemplates(getTemplatesFolder(machine), files, join).map(toTemplateFinding),
    ],
    ...(!machine.detached && {
      reload: createReload(machine),
      listUndoSteps: () => [restartNote],
      observe: ({ cache }) => observeK3s(cache, root),
    }),
    pull(image) {
      return pullByCrictl(
        (args) => runCommand('k3s', ['crictl', ...args], { timeoutMs: pullTimeoutMs }),
        image,
        'k3s is not installed.',
      )
    },
    reasons: [
      { why: 'k3s was not restarted since', fix: 'systemctl restart k3s' },
      { why: 'k3s is not configured', fix: 'mirror configure k3s', isUnconfigured: true },
      {
        why: 'k3s rejects the file, which it reports in its log',
        fix: 'journalctl --unit k3s --no-pager --lines 50',
      },
    ],
  }
}

function toTemplateFinding(saw: string): Finding {
  const advice = 'Begin the template with {{ template "base" . }}, then: systemctl restart k3s'
  return { fault: 'k3s.template', state: 'fail', saw, mend: { advice } }
}

/** Reads the hosts.toml files that k3s makes from registries.yaml at its start: they are its effective configuration. */
async function observeK3s(cache: string, root: string): Promise<Observation> {
  const certsFolder = join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd', 'certs.d')
  const texts: string[] = []
  for (const name of ['_default', 'docker.io']) {
    const state = await ifVisible(localFiles.read(join(certsFolder, name, 'hosts.toml')))
    if (state) texts.push(Buffer.from(state.bytes).toString())
  }
  const exists = (await ifVisible(stat(certsFolder))) !== undefined
  const inUse = exists ? texts.some((text) => text.includes(new URL(cache).host)) : undefined
  return {
    inUse,
    saw: exists
      ? [`k3s runs with ${certsFolder}, which ${inUse ? 'names' : 'does not name'} ${cache}.`]
      : [`Cannot read ${certsFolder}, the effective configuration of k3s.`],
    reasons:
      inUse === false
        ? [{ why: 'k3s was not restarted since it was configured', fix: 'sudo systemctl restart k3s' }]
        : [
            {
              why: `k3s did not reach ${cache}, or could not use its hosts.toml`,
              fix: 'journalctl --unit k3s --no-pager --lines 50',
            },
          ],
    todo: inUse === false ? [restartNote] : [],
  }
}

function createReload({ runCommand }: Machine): ClientReload {
  const runSystemctl = (...args: string[]) => runCommand('systemctl', args, { timeoutMs: 120_000 })
  return {
    question: 'Restart k3s now?',
    done: 'Restarted k3s.',
    async run() {
      // Try both units: a node has one of them, and systemctl fails for the other.
      for (const unit of ['k3s.service', 'k3s-agent.service']) {
        const active = await runSystemctl('is-active', '--quiet', unit)
        if (active === undefined) throw createRestartError('systemctl is not installed')
        if (active.exitCode !== 0) continue
        const restarted = await runSystemctl('restart', unit)
        if (restarted?.exitCode === 0) return
        throw createRestartError(restarted?.stderr.trim() || 'it took too long')
      }
      throw createRestartError('it does not run as a systemd service')
    },
  }
}

function createRestartError(reason: string): MirrorError {
  return new MirrorError(`Could not restart k3s: ${reason}.`, {
    exit: exitCode.missing,
    hints: ['systemctl restart k3s   (k3s-agent on an agent)'],
  })
}
