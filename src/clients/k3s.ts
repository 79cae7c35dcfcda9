import { access, constants, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { stringify } from 'yaml'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { versionOf } from './address.ts'
import { pullByCrictl, pullTimeoutMs } from './containerd/cri.ts'
import { localRegistryName } from './containerd/hosts-toml.ts'
import {
  addYamlItem,
  addYamlKey,
  readYamlText,
  removeFromYaml,
  yamlRefusal,
  type YamlText,
  yamlValue,
} from './edit/yaml.ts'
import {
  caChange,
  caFileName,
  isWrittenByMirror,
  refuseOtherKinds,
  refuseUnknownKeys,
  registriesKeys,
  writtenByMirror,
} from './files/kinds.ts'
import { localFiles } from './files/local.ts'
import type {
  ClientAdapter,
  ConfigTarget,
  ClientReload,
  FileChange,
  FilesNow,
  Machine,
  MirrorForClient,
  Observation,
} from './types.ts'

/** Where the mirror's CA is put, and by what path k3s reads it. */
export interface CaLocation {
  readonly path: string
  readonly name: string
}

/** Where nodes have what k3s looks for. */
export const k3sFolder = '/etc/rancher/k3s'

/** Templates of the user's, by the plugin whose section k3s needs in what is made from them: the first for containerd 1.x. */
const k3sTemplates = [
  ['config.toml.tmpl', 'io.containerd.grpc.v1.cri'],
  ['config-v3.toml.tmpl', 'io.containerd.cri.v1.images'],
] as const

/** Says which templates keep containerd from what k3s makes of a registries.yaml. https://docs.k3s.io/advanced#configuring-containerd */
export function sayTemplates(folder: string, files: FilesNow, join: (...parts: string[]) => string): string[] {
  return k3sTemplates.flatMap(([name, plugin]) => {
    const path = join(folder, name)
    const text = files.text(path)
    if (text === undefined || /\{\{-?\s*template\s+"base"/.test(text)) return []
    const section = text.split(/^\s*(?=\[)/m).find((part) => part.includes(plugin) && /^\[[^\]]*registry/.test(part))
    if (section !== undefined && /^\s*config_path\s*=/m.test(section)) return []
    return [
      `${path} takes the place of what k3s makes, and sets no config_path for ${plugin}: registries.yaml has no effect. ` +
        'Begin it with {{ template "base" . }}.',
    ]
  })
}

/** What becomes of a registries.yaml, and what has to be said about it. */
export interface RegistriesPlan {
  readonly changes: FileChange[]
  readonly notes: string[]
}

const expected = 'a registries.yaml'

/** Stands for every registry that has no entry of its own. */
const everyRegistry = '*'

/**
 * The registries.yaml of k3s, which k3d takes as well: the mirror before all other endpoints, for every registry that it may be
 * asked for. https://docs.k3s.io/installation/private-registry
 */
export function planRegistries(
  mirror: MirrorForClient,
  path: string,
  caPlace: CaLocation,
  files: FilesNow,
): RegistriesPlan {
  const { changes, notes } = planFile(mirror, path, caPlace, files)
  return { changes: [...changes, ...caChange(caPlace.path, mirror.ca, files)], notes }
}

function planFile(
  mirror: MirrorForClient,
  path: string,
  { name: caName }: CaLocation,
  files: FilesNow,
): RegistriesPlan {
  const { cache, registry } = mirror
  const trusting = mirror.ca === undefined ? [] : hostsOf(mirror)
  const alias = registry === undefined ? undefined : localRegistryName(registry)
  const fresh = {
    mirrors: {
      [everyRegistry]: { endpoint: [cache] },
      ...(alias !== undefined && { [alias]: { endpoint: [registry] } }),
    },
    ...(trusting.length > 0 && {
      configs: Object.fromEntries(trusting.map((host) => [host, { tls: { ca_file: caName } }])),
    }),
  }
  const before = files.text(path)
  const isKnown = refuseOtherKinds(path, before ?? '', { kinds: ['registries.yaml'], expected })
  const yaml = readYamlText(before ?? '', path)
  if (!isKnown) refuseUnknownKeys(path, yamlValue(yaml), { expected, keys: registriesKeys })
  if (yamlValue(yaml) === null || isAllOurs(yaml, caName)) {
    const [above, below] = aroundHeader(yaml.text)
    const kept = `${above}${yamlValue(yaml) === null ? below : ''}`.replace(/[^\n]$/, '$&\n')
    return { changes: files.change(path, `${kept}${writtenByMirror}${stringify(fresh)}`), notes: [] }
  }
  const own = Object.keys(mirrorsOf(yaml)).filter((name) => name !== everyRegistry && name !== alias)
  const served = own.filter((name) => mirror.registries.includes(name))
  const notes: string[] = []
  let after = withEndpoint(yaml, everyRegistry, cache)
  for (const name of served) {
    if (hasRewrite(after, name))
      notes.push(`${name} keeps its own endpoints: what is rewritten for them would not be found here.`)
    else after = withEndpoint(after, name, cache)
  }
  const others = own.filter((name) => !served.includes(name))
  if (others.length > 0)
    notes.push(
      `${others.join(', ')} ${others.length === 1 ? 'keeps its' : 'keep their'} own endpoints: the mirror does not know them (upstreams in mirror.yaml).`,
    )
  if (alias !== undefined && registry !== undefined) {
    if (mirrorsOf(after)[alias] === undefined) after = withEndpoint(after, alias, registry)
    else if (!endpointsOf(after, alias).includes(registry))
      notes.push(`${alias} is a registry of your own, and stays so.`)
  }
  for (const host of trusting) {
    const there = yamlValue(after, caKey(host))
    if (there === undefined) after = addYamlKey(after, caKey(host), caName)
    else if (there !== caName)
      notes.push(`${host} keeps its own ca_file (${JSON.stringify(there)}), which has to hold the mirror's CA.`)
  }
  return { changes: files.change(path, after.text), notes }
}

/** By host and port, for the cache and the registry alike. */
function hostsOf({ cache, registry }: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  return [...new Set([cache, ...(registry === undefined ? [] : [registry])].map((url) => new URL(url).host))]
}

function caKey(host: string): [string, string, string, string] {
  return ['configs', host, 'tls', 'ca_file']
}

/** See ConfigTarget.strip. */
export function stripRegistries(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  path: string,
  caPlace: CaLocation,
  files: FilesNow,
): FileChange[] {
  const { cache, registry } = mirror
  const ca = caChange(caPlace.path, undefined, files)
  const before = files.text(path)
  if (before === undefined) return ca
  let yaml = readYamlText(before, path)
  for (const name of Object.keys(mirrorsOf(yaml))) {
    for (const url of [cache, registry]) {
      const at = endpointsOf(yaml, name).indexOf(url)
      if (at !== -1) yaml = removeFromYaml(yaml, ['mirrors', name, 'endpoint', at])
    }
  }
  for (const host of hostsOf(mirror))
    if (yamlValue(yaml, caKey(host)) === caPlace.name) yaml = removeFromYaml(yaml, caKey(host))
  const isEmpty = yamlValue(yaml) === null && yaml.text.trim() === writtenByMirror.trim()
  return [...files.change(path, isEmpty ? undefined : yaml.text), ...ca]
}

function withEndpoint(yaml: YamlText, name: string, url: string): YamlText {
  if (hasRewrite(yaml, name))
    throw yamlRefusal(
      yaml,
      ['mirrors', name],
      'names are rewritten here, for the mirror as well, which would not know them',
    )
  if (mirrorsOf(yaml)[name] === undefined) return addYamlKey(yaml, ['mirrors', name], { endpoint: [url] })
  return endpointsOf(yaml, name).includes(url) ? yaml : addYamlItem(yaml, ['mirrors', name, 'endpoint'], url, 'start')
}

/** Whether nothing but what we write is in it, for whatever address: then it is written anew. */
function isAllOurs(yaml: YamlText, caName: string): boolean {
  const value = yamlValue(yaml)
  const [, below] = aroundHeader(yaml.text)
  // A remark of the user's would be lost.
  if (!isWrittenByMirror(yaml.text) || below.includes('#') || typeof value !== 'object' || value === null) return false
  const entries = Object.entries(mirrorsOf(yaml))
  const configs = Object.values(yamlValue(yaml, ['configs']) ?? {})
  return (
    Object.keys(value).every((key) => key === 'mirrors' || key === 'configs') &&
    configs.every((config) => isDeepStrictEqual(config, { tls: { ca_file: caName } })) &&
    entries.every(([name, entry]) => {
      const ours = name === everyRegistry || /^localhost:\d+$/.test(name)
      return ours && Object.keys(entry ?? {}).join() === 'endpoint' && endpointsOf(yaml, name).length === 1
    })
  )
}

/** What stands above and below the line that says whose file it is; all above, where there is none. */
function aroundHeader(text: string): [above: string, below: string] {
  const [above = '', below = ''] = text.split(writtenByMirror.trimEnd(), 2)
  return [above, below.replace(/^\r?\n/, '')]
}

function mirrorsOf(yaml: YamlText): Readonly<Record<string, object | null>> {
  const mirrors = yamlValue(yaml, ['mirrors']) ?? {}
  if (typeof mirrors !== 'object' || Array.isArray(mirrors))
    throw yamlRefusal(yaml, ['mirrors'], 'there should be a map here')
  return mirrors as Record<string, object | null>
}

function endpointsOf(yaml: YamlText, name: string): unknown[] {
  const endpoints = yamlValue(yaml, ['mirrors', name, 'endpoint']) ?? []
  if (!Array.isArray(endpoints)) throw yamlRefusal(yaml, ['mirrors', name, 'endpoint'], 'there should be a list here')
  return endpoints
}

function hasRewrite(yaml: YamlText, name: string): boolean {
  return Object.keys(yamlValue(yaml, ['mirrors', name, 'rewrite']) ?? {}).length > 0
}

/** k3s on this machine. https://docs.k3s.io/installation/private-registry */
export const k3sAdapter: ClientAdapter = {
  client: 'k3s',
  summary: 'k3s: registries.yaml',

  async find(machine) {
    return versionOf(machine, 'k3s', '--version')
  },

  async targets(machine) {
    return [place(machine, await readableTemplates(machine))]
  },

  recall: (machine) => place(machine, []),
}

const restartByHand = 'k3s reads it when it starts: systemctl restart k3s (k3s-agent on an agent)'

const templatesFolder = ({ root }: Machine) => join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd')

/** k3s keeps them from all but root, and a plan is possible without them. */
async function readableTemplates(machine: Machine): Promise<string[]> {
  const paths = k3sTemplates.map(([name]) => join(templatesFolder(machine), name))
  const readable = await Promise.all(paths.map((path) => ifVisible(access(path, constants.R_OK).then(() => path))))
  return readable.filter((path) => path !== undefined)
}

function place(machine: Machine, templates: readonly string[]): ConfigTarget {
  const { root, runCommand } = machine
  const path = join(root, k3sFolder, 'registries.yaml')
  const ca = { path: join(root, k3sFolder, caFileName), name: `${k3sFolder}/${caFileName}` }
  return {
    id: 'system',
    title: `system (${path})`,
    details: { scope: 'system' },
    location: { in: 'host' },
    files: localFiles,
    wants: { files: [path, ca.path, ...templates], trees: [] },
    plan(mirror, files) {
      const { changes, notes } = planRegistries(mirror, path, ca, files)
      const todo = [
        ...(changes.length === 0 ? [] : [restartByHand]),
        ...(mirror.fallback
          ? []
          : ['start k3s with --disable-default-registry-endpoint: it asks the origin otherwise']),
      ]
      return { changes, notes: [...notes, ...sayTemplates(templatesFolder(machine), files, join)], todo }
    },
    strip: (mirror, files) => stripRegistries(mirror, path, ca, files),
    ...(!machine.detached && {
      reload: restart(machine),
      afterUndo: () => [restartByHand],
      observe: ({ cache }) => observe(cache, root),
    }),
    pull(image) {
      return pullByCrictl(
        (args) => runCommand('k3s', ['crictl', ...args], { timeoutMs: pullTimeoutMs }),
        image,
        'There is no k3s here.',
      )
    },
    reasons: [
      { why: 'k3s was not restarted since', fix: 'systemctl restart k3s' },
      { why: 'k3s is not configured', fix: 'mirror configure k3s', isUnconfigured: true },
      {
        why: 'the file is not what k3s expects, which its log says',
        fix: 'journalctl --unit k3s --no-pager --lines 50',
      },
    ],
  }
}

/** k3s turns registries.yaml into hosts.toml files when it starts: they say what it runs with. */
async function observe(cache: string, root: string): Promise<Observation> {
  const made = join(root, 'var', 'lib', 'rancher', 'k3s', 'agent', 'etc', 'containerd', 'certs.d')
  const texts: string[] = []
  for (const name of ['_default', 'docker.io']) {
    const state = await ifVisible(localFiles.read(join(made, name, 'hosts.toml')))
    if (state) texts.push(Buffer.from(state.bytes).toString())
  }
  const isThere = (await ifVisible(stat(made))) !== undefined
  const inUse = isThere ? texts.some((text) => text.includes(new URL(cache).host)) : undefined
  return {
    inUse,
    saw: isThere
      ? [`k3s runs with ${made}, which ${inUse ? 'names' : 'does not name'} ${cache}.`]
      : [`${made}, which tells what k3s runs with, cannot be seen.`],
    reasons:
      inUse === false
        ? [{ why: 'k3s was not restarted since it was configured', fix: 'sudo systemctl restart k3s' }]
        : [
            {
              why: `k3s did not reach ${cache}, or could not use its hosts.toml`,
              fix: 'journalctl --unit k3s --no-pager --lines 50',
            },
          ],
    todo: inUse === false ? [restartByHand] : [],
  }
}

function restart({ runCommand }: Machine): ClientReload {
  const systemctl = (...args: string[]) => runCommand('systemctl', args, { timeoutMs: 120_000 })
  return {
    question: 'Restart k3s now?',
    done: 'Restarted k3s.',
    async run() {
      // A node has one of the two, and systemctl fails for a unit that it does not know.
      for (const unit of ['k3s.service', 'k3s-agent.service']) {
        const active = await systemctl('is-active', '--quiet', unit)
        if (active === undefined) throw notRestarted('there is no systemctl')
        if (active.exitCode !== 0) continue
        const restarted = await systemctl('restart', unit)
        if (restarted?.exitCode === 0) return
        throw notRestarted(restarted?.stderr.trim() || 'it took too long')
      }
      throw notRestarted('it does not run as a service of systemd')
    },
  }
}

function notRestarted(why: string): MirrorError {
  return new MirrorError(`k3s was not restarted: ${why}.`, {
    exit: exitCode.missing,
    hints: ['systemctl restart k3s   (k3s-agent on an agent)'],
  })
}
