import { isDeepStrictEqual } from 'node:util'
import { isScalar } from 'yaml'
import { shellWord } from '../lib/process.ts'
import type { FileChange, MirrorForClient } from './client-config.ts'
import { addYamlKey, removeFromYaml } from './edit/yaml.ts'
import { recognizeFile } from './files/kinds.ts'
import type { FilesNow } from './files-now.ts'
import { planRegistries, stripRegistries, type CaPlace, type RegistriesPlan } from './k3s.ts'
import { type YamlText, readYamlText, yamlNode, yamlRefusal, yamlValue } from './yaml-text.ts'

/** What a cluster file of k3d (`kind: Simple`) says about its cluster. https://k3d.io/stable/usage/configfile/ */
export interface K3dClusterFile {
  readonly name: string | undefined
  /** The Docker network that it names, instead of one of its own. */
  readonly network: string | undefined
}

/** Where the text lies that is a registries.yaml of its own. */
const embeddedConfig = ['registries', 'config'] as const

/** Undefined for any other file. */
export function k3dClusterFile(path: string, text: string): K3dClusterFile | undefined {
  if (recognizeFile(path, text)?.kind !== 'k3d cluster') return undefined
  const yaml = readYamlText(text, path)
  const [name, network] = [
    yamlValue(yaml, ['metadata', 'name']) ?? yamlValue(yaml, ['name']),
    yamlValue(yaml, ['network']),
  ]
  return {
    name: typeof name === 'string' ? name : undefined,
    network: typeof network === 'string' && network !== '' ? network : undefined,
  }
}

/** The cluster file with the mirror in its registries; see planRegistries. */
export function planClusterFile(
  mirror: MirrorForClient,
  path: string,
  caPlace: CaPlace,
  files: FilesNow,
): RegistriesPlan {
  const yaml = readSimple(path, files.text(path)!)
  const inner = registriesIn(yaml)
  const { changes, notes } = planRegistries(mirror, path, caPlace, innerFiles(files, path, inner))
  return { changes: around(yaml, inner, path, changes, files), notes }
}

/** See ClientPlace.strip. */
export function stripClusterFile(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  path: string,
  caPlace: CaPlace,
  files: FilesNow,
): FileChange[] {
  const yaml = readSimple(path, files.text(path)!)
  const inner = registriesIn(yaml)
  return around(yaml, inner, path, stripRegistries(mirror, path, caPlace, innerFiles(files, path, inner)), files)
}

function readSimple(path: string, text: string): YamlText {
  const yaml = readYamlText(text, path)
  if (yamlValue(yaml, ['kind']) !== 'Simple')
    throw yamlRefusal(yaml, ['kind'], 'this is no cluster file of k3d with kind: Simple')
  return yaml
}

/** The registries.yaml that is in the file; undefined where there is none. */
function registriesIn(yaml: YamlText): string | undefined {
  const config = yamlValue(yaml, embeddedConfig) ?? undefined
  if (config === undefined) return undefined
  if (typeof config !== 'string')
    throw yamlRefusal(yaml, embeddedConfig, 'there should be a text here, which is a registries.yaml')
  if (config.trim() === '') return undefined
  // k3d takes a text of one line for the path of a file.
  if (!config.includes('\n'))
    throw yamlRefusal(yaml, embeddedConfig, `k3d reads the registries from another file, ${config}`, [
      `mirror configure k3d --file ${shellWord(config)}`,
    ])
  return config
}

/** The files as they would be if the text inside were all of it. */
function innerFiles(files: FilesNow, path: string, inner: string | undefined): FilesNow {
  return files.with([{ path, before: undefined, after: inner }])
}

/** The changes with that of the text inside as one of the whole file. */
function around(
  yaml: YamlText,
  inner: string | undefined,
  path: string,
  changes: readonly FileChange[],
  files: FilesNow,
): FileChange[] {
  return changes.flatMap((change) => {
    if (change.path !== path) return [change]
    const { after } = change
    if (after === undefined)
      return files.change(path, inner === undefined ? yaml.text : removeFromYaml(yaml, embeddedConfig).text)
    const added = inner === undefined ? withoutNothing(yaml) : yaml
    return files.change(
      path,
      inner === undefined ? addYamlKey(added, embeddedConfig, after).text : withText(yaml, after),
    )
  })
}

/** Without an empty `config:`, which another takes the place of. */
function withoutNothing(yaml: YamlText): YamlText {
  return yamlNode(yaml, embeddedConfig) === undefined ? yaml : removeFromYaml(yaml, embeddedConfig)
}

/** The file with another text inside. Lines that stay, stay to the byte. */
function withText(yaml: YamlText, after: string): string {
  const node = yamlNode(yaml, embeddedConfig)
  const refuse = () =>
    yamlRefusal(
      yaml,
      embeddedConfig,
      'registries.config is written in a way that cannot be changed without rewriting more of it',
      ['write it as a block: config: |'],
    )
  if (!isScalar(node) || !node.range) throw refuse()
  const [start, end] = node.range
  const old = yaml.text.slice(start, end)
  const put = old.startsWith('|') ? block(old, after) : old.startsWith('"') ? JSON.stringify(after) : undefined
  if (put === undefined) throw refuse()
  const text = yaml.text.slice(0, start) + put + yaml.text.slice(end)
  if (!isDeepStrictEqual(contentOf(readYamlText(text, yaml.path)), { ...contentOf(yaml), config: after.trimEnd() }))
    throw refuse()
  return text
}

/** The file without the text inside, and that text; the block's header decides about line ends at its end. */
function contentOf(yaml: YamlText): { readonly all: unknown; readonly config: string } {
  const all = yamlValue(yaml) as { registries: object }
  return {
    all: { ...all, registries: { ...all.registries, config: '' } },
    config: String(yamlValue(yaml, embeddedConfig)).trimEnd(),
  }
}

/** A literal block with another content: the lines at its start and end that are the same are kept as they were written. */
function block(old: string, after: string): string {
  const [header, ...lines] = old.split(/(?<=\n)/) as [string, ...string[]]
  const indent = /^ +(?=\S)/.exec(lines.find((line) => line.trim() !== '') ?? '')?.[0] ?? '  '
  const end = header.endsWith('\r\n') ? '\r\n' : '\n'
  const written = lines.map((line) => line.replace(/\r?\n$/, '').slice(indent.length))
  const wanted = after.replace(/\n$/, '').split('\n')
  let top = 0
  while (top < wanted.length && wanted[top] === written[top]) top += 1
  let bottom = 0
  while (
    bottom < wanted.length - top &&
    bottom < written.length - top &&
    wanted.at(-1 - bottom) === written.at(-1 - bottom)
  )
    bottom += 1
  const middle = wanted.slice(top, wanted.length - bottom).map((line) => (line === '' ? '' : indent + line) + end)
  const kept = [...lines.slice(0, top), ...middle, ...lines.slice(lines.length - bottom)]
  // The last line has as much of a line end as it had.
  return header + kept.map((line, at) => (at < kept.length - 1 && !line.endsWith('\n') ? line + end : line)).join('')
}
