import { constants } from 'node:fs'
import { access, copyFile, readFile, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { type Config, defaultConfig, toConfigDocument } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { parseConfig } from '../config/parse.ts'
import { mirrorPaths } from '../config/paths.ts'
import { formatProblem } from '../config/values.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder, ignoreMissing, writeFileAtomic } from '../lib/fs.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { createAutostartSpec, printedOrigins, renderLaunchAgent, renderSystemdUnit } from './autostart.ts'
import { toContainerPorts } from './container/desired.ts'
import { localImage } from './container/image.ts'

/** Holds the choices for a new mirror.yaml; all other keys have their default. */
export interface ConfigChoices {
  cachePort: number
  /** `20GiB` */
  maxSize: string
  /** Lists additional registries; `docker.io=https://harbor.corp/hub` for one behind a company cache, with a path. */
  upstreams: readonly string[]
}

interface InitRequest {
  choices: ConfigChoices
  /** Absolute path. */
  configFile: string
  /** Locates the template of mirror.yaml. */
  template: string
  homedir: string
}

/** Renders a commented mirror.yaml. Throws a MirrorError (exit 2) for an invalid choice. */
export async function renderConfig({ choices, configFile, template, homedir }: InitRequest): Promise<string> {
  const { cachePort, maxSize, upstreams } = choices
  for (const upstream of upstreams) {
    const problem = describeUpstreamProblem(upstream, homedir)
    if (problem !== undefined)
      throw new MirrorError(`${problem}.`, { exit: exitCode.usage, hints: ['mirror init --help'] })
  }
  // JSON is YAML, and escapes user input.
  const text = (await readFile(template, 'utf8'))
    .replace("'@LISTEN@'", () => JSON.stringify([`127.0.0.1:${cachePort}`]))
    .replace("'@MAX_SIZE@'", () => maxSize.replaceAll(/[^\w.]/g, '?'))
    .replace("'@UPSTREAMS@'", () => upstreams.map((upstream) => `\n  ${renderUpstream(upstream)}`).join(''))
    .replace(/^upstreams: $/m, 'upstreams:')
  const parsed = parseConfig({ text, path: configFile, label: 'mirror.yaml', homedir })
  if ('config' in parsed) return text
  throw new MirrorError(
    `These choices are not a valid configuration:\n${parsed.problems.map((problem) => `  ${formatProblem(problem)}`).join('\n')}`,
    { exit: exitCode.usage, hints: ['mirror init --help'] },
  )
}

/** Describes what is wrong with an additional registry; undefined for a valid one. */
export function describeUpstreamProblem(upstream: string, homedir: string): string | undefined {
  const text = `upstreams:\n  ${renderUpstream(upstream)}`
  const parsed = parseConfig({ text, path: '/mirror.yaml', label: 'mirror.yaml', homedir })
  if ('config' in parsed) return undefined
  const [problem] = parsed.problems
  return /^[^=]*:\/\//.test(upstream)
    ? `Write the host alone, such as ghcr.io, or HOST=URL for a company cache, not ${JSON.stringify(upstream)}`
    : `${JSON.stringify(upstream)}: ${problem?.message ?? 'not valid'}`
}

/** Renders `host` or `host=url`; the path of the URL becomes the prefix. The parser of the configuration reports invalid input. */
function renderUpstream(text: string): string {
  const [host = '', ...rest] = text.split('=')
  const written = rest.join('=').trim()
  const value: Record<string, string> = {}
  if (written !== '') {
    const url = written.includes('://') ? written : `https://${written}`
    const { origin, pathname } = URL.canParse(url) ? new URL(url) : { origin: url, pathname: '/' }
    const prefix = pathname.replaceAll(/^\/+|\/+$/g, '').replace(/^v2\/+/, '')
    // Keep a user name in the URL, which the parser refuses.
    value['url'] = url.includes('@') ? url : origin
    if (prefix !== '') value['prefix'] = prefix
  }
  return `${JSON.stringify(host.trim())}: ${JSON.stringify(value).replaceAll(/(?<=[{,]"[a-z]+":)/g, ' ')}`
}

interface WriteOptions {
  /** Replaces an existing file, and keeps a copy of it. */
  readonly force: boolean
  /** Holds the user's command without `--force` and `--dry-run`, which the error for an existing file repeats. */
  readonly command: string
}

/**
 * Writes a file. Returns the path of the copy of the file that it replaces; undefined when nothing is lost. Throws a MirrorError
 * (exit 2) for an existing file without `force`.
 */
export async function writeConfig(
  file: string,
  text: string,
  { force, command }: WriteOptions,
): Promise<string | undefined> {
  await makeFolder(dirname(file))
  try {
    await writeFile(file, text, { flag: 'wx', mode: 0o600 })
    return undefined
  } catch (error) {
    if (getErrno(error) !== 'EEXIST') throw error
  }
  if (!force) throw createExistingFileError(file, command)
  // The file is absent where a symbolic link leads nowhere.
  const isFile = (await ignoreMissing(() => stat(file)))?.isFile() === true
  const old = isFile ? await readFile(file, 'utf8') : undefined
  const copy = old === undefined || old === text ? undefined : await copyBeside(file)
  await writeFileAtomic(file, text)
  return copy
}

/** Copies a file to the first free of `mirror.yaml.bak`, `mirror.yaml.bak2`, …: an earlier copy may be the one with the user's text. */
async function copyBeside(file: string): Promise<string> {
  for (let number = 1; ; number++) {
    const copy = `${file}.bak${number === 1 ? '' : number}`
    try {
      await copyFile(file, copy, constants.COPYFILE_EXCL)
      return copy
    } catch (error) {
      if (getErrno(error) !== 'EEXIST') throw error
    }
  }
}

/** Throws a MirrorError (exit 2) for an existing file, before the user is asked anything. */
export async function refuseExisting(file: string, command: string): Promise<void> {
  try {
    await access(file)
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return
    throw error
  }
  throw createExistingFileError(file, command)
}

function createExistingFileError(file: string, command: string): MirrorError {
  return new MirrorError(`${file} already exists and was not changed.`, {
    exit: exitCode.usage,
    hints: [`${command} --dry-run   (prints a new one)`, `${command} --force   (replaces it, and keeps a copy)`],
  })
}

export type TemplateName = 'compose' | 'systemd' | 'launchd' | 'caddy' | 'k8s'

interface TemplateRequest {
  readonly name: TemplateName
  readonly surroundings: CommandEnvironment
  /** bin/run.js */
  readonly program: string
  /** Names the folder of the package's templates. */
  readonly templates: string
  /** Names the image of the templates that run one. */
  readonly image: string | undefined
}

/** Renders a file that runs the mirror, or a proxy in front of it, with the ports and sizes of the configuration. */
export async function renderTemplate(request: TemplateRequest): Promise<string> {
  const { name, surroundings, program } = request
  const paths = mirrorPaths(surroundings)
  const config = await loadConfig({ ...surroundings, paths })
  const read = (file: string) => readFile(join(request.templates, file), 'utf8')
  const spec = () => createAutostartSpec(program, surroundings, paths, { secrets: false })
  switch (name) {
    case 'systemd':
      return renderSystemdUnit(await read('systemd/mirror.service'), spec(), printedOrigins.systemd)
    case 'launchd':
      return renderLaunchAgent(await read('launchd/dev-mirror.plist'), spec(), printedOrigins.launchd)
    case 'caddy':
    case 'compose':
    case 'k8s': {
      const ports = toContainerPorts(config)
      const { maxSize } = config.cache
      const note = name === 'caddy' ? '' : describeLeftOutSettings(config, name)
      return fill(note + (await read(files[name])), {
        IMAGE: checkImage(request.image ?? localImage),
        MAX_SIZE: formatSize(maxSize),
        // Add room for pushed images and downloads to that of the cache.
        STORAGE: maxSize === 0 ? '100Gi' : formatQuantity(maxSize * 1.25),
        CACHE_PORT: String(ports.cache.inside),
        REGISTRY_PORT: String(ports.registry?.inside ?? 5001),
        ADMIN_PORT: String(ports.admin.inside),
      })
    }
  }
}

const files = { caddy: 'Caddyfile', compose: 'compose.yaml', k8s: 'k8s.yaml' } as const

/** `20GiB`; exact, in the largest unit of mirror.yaml that divides the size. */
function formatSize(bytes: number): string {
  const [name, unit] = units.find(([, unit]) => bytes % unit === 0) ?? ['', 1]
  return bytes === 0 ? '0' : `${bytes / unit}${name === '' ? 'B' : `${name}B`}`
}

/** `25Gi`: the size rounded up to whole units, as Kubernetes writes quantities. */
function formatQuantity(bytes: number): string {
  const [name, unit] = units.find(([, unit]) => bytes >= unit) ?? ['', 1]
  return `${Math.ceil(bytes / unit)}${name}`
}

const units = [
  ['Gi', 1024 ** 3],
  ['Mi', 1024 ** 2],
  ['Ki', 1024],
] as const

const mountHints = {
  compose:
    'add "./mirror.yaml:/etc/mirror/mirror.yaml:ro" to "volumes" and "MIRROR_CONFIG: /etc/mirror/mirror.yaml" to "environment"; user 1000 reads it',
  k8s: 'mount a ConfigMap with the key mirror.yaml at /etc/mirror, and set MIRROR_CONFIG to /etc/mirror/mirror.yaml',
}

/** Renders a comment about the settings that a template does not take over; empty when there are none. */
function describeLeftOutSettings(config: Config, name: keyof typeof mountHints): string {
  const [own, usual] = [toConfigDocument(config), toConfigDocument(defaultConfig())]
  const taken = new Set(['cache.listen', 'cache.maxSize', 'registry.listen', 'admin.listen'])
  const keys = Object.entries(own).flatMap(([part, value]) => {
    if (isDeepStrictEqual(value, usual[part])) return []
    if (!['cache', 'registry', 'admin'].includes(part)) return [part]
    const [given, standard] = [value, usual[part]] as [Record<string, unknown>, Record<string, unknown>]
    return Object.keys(given)
      .filter((key) => !isDeepStrictEqual(given[key], standard[key]))
      .map((key) => `${part}.${key}`)
      .filter((key) => !taken.has(key))
  })
  if (keys.length === 0) return ''
  return [
    `# NOT taken over from your settings: ${keys.join(', ')}.`,
    `# To use mirror.yaml: ${mountHints[name]}. Files that it names must be in the container, too.`,
    '',
  ].join('\n')
}

function fill(template: string, values: Readonly<Record<string, string>>): string {
  return template.replaceAll(/@([A-Z_]+)@/g, (placeholder, name: string) => values[name] ?? placeholder)
}

function checkImage(name: string): string {
  if (/^[\w.:/@-]+$/.test(name)) return name
  throw new MirrorError(`${JSON.stringify(name)} is not the name of an image.`, { exit: exitCode.usage })
}
