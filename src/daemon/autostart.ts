import { readFile, rm } from 'node:fs/promises'
import { join, posix, resolve } from 'node:path'
import type { Config } from '../config/config.ts'
import { listSettingVariables } from '../config/load.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { findPackageRoot } from '../lib/fs.ts'
import { type RunCommand, runCommand, type CommandEnvironment } from '../lib/process.ts'
import { proxyVariables } from '../upstream/proxy.ts'
import { getServeArguments } from './spawn.ts'

/** Starts a mirror after each reboot. */
interface Autostart {
  /** Names the file of the unit or agent. */
  readonly file: string
  /** Throws a MirrorError (exit 4) when this machine cannot do it. */
  check(): Promise<void>
  /** Returns the steps that are left to the user, one a line. */
  install(spec: AutostartSpec): Promise<string[]>
  /** Returns whether there was anything to remove. */
  remove(): Promise<boolean>
}

interface AutostartOptions {
  platform: string
  env: Readonly<Record<string, string | undefined>>
  homedir: string
  /** Names the folder of the package's templates. */
  templates: string
  runCommand: RunCommand
}

const timeoutMs = 15_000

/** Creates the autostart of a platform: a systemd user unit or a launchd agent. Throws a MirrorError (exit 4) on any other. */
export function createAutostart(options: AutostartOptions): Autostart {
  if (options.platform === 'linux') return createSystemd(options)
  if (options.platform === 'darwin') return createLaunchd(options)
  throw new MirrorError('--autostart is supported on Linux (systemd) and macOS (launchd) only.', {
    exit: exitCode.missing,
    hints: ['mirror up   (after each start of the machine)'],
  })
}

function createSystemd({ env, homedir, templates, runCommand }: AutostartOptions): Autostart {
  const config = env['XDG_CONFIG_HOME']
  const unit = 'mirror.service'
  const file = posix.join(
    config && posix.isAbsolute(config) ? config : posix.join(homedir, '.config'),
    'systemd/user',
    unit,
  )
  const systemctl = (...args: string[]) => runCommand('systemctl', ['--user', ...args], { timeoutMs })

  async function mustSucceed(...args: string[]): Promise<void> {
    const result = await systemctl(...args)
    if (result?.exitCode === 0) return
    throw new MirrorError(
      `systemctl --user ${args.join(' ')} failed: ${result?.stderr.trim() || 'it is not installed'}.`,
      {
        exit: exitCode.missing,
      },
    )
  }

  return {
    file,
    async check() {
      const session = await systemctl('show-environment')
      if (session?.exitCode === 0) return
      const why = session === undefined ? 'systemctl is not installed' : 'there is no systemd user session here'
      throw new MirrorError(`--autostart is not possible: ${why}.`, {
        exit: exitCode.missing,
        hints: [
          'mirror up   (without --autostart, until the next reboot)',
          'mirror serve   (for any other supervisor)',
        ],
      })
    },
    async install(spec) {
      const template = await readFile(posix.join(templates, 'systemd', unit), 'utf8')
      await writeFileAtomic(file, renderSystemdUnit(template, spec))
      await mustSucceed('daemon-reload')
      await mustSucceed('enable', unit)
      // Without lingering the units of a user start only at the first login.
      const lingers = await runCommand('loginctl', ['enable-linger'], { timeoutMs })
      return lingers?.exitCode === 0 ? [] : ['sudo loginctl enable-linger "$USER"   (to start before you log in)']
    },
    async remove() {
      if (!(await exists(file))) return false
      // Without a session systemctl fails; removing the files is enough.
      const disabled = await systemctl('disable', unit)
      await rm(posix.join(posix.dirname(file), 'default.target.wants', unit), { force: true })
      await rm(file, { force: true })
      if (disabled?.exitCode === 0) await systemctl('daemon-reload')
      return true
    },
  }
}

/** Writes the agent into the folder whose agents launchd starts at login; no command is needed. */
function createLaunchd({ homedir, templates }: AutostartOptions): Autostart {
  const name = 'dev-mirror.plist'
  const file = posix.join(homedir, 'Library/LaunchAgents', name)
  return {
    file,
    async check() {},
    async install(spec) {
      const template = await readFile(posix.join(templates, 'launchd', name), 'utf8')
      await writeFileAtomic(file, renderLaunchAgent(template, spec))
      return []
    },
    async remove() {
      if (!(await exists(file))) return false
      await rm(file, { force: true })
      return true
    },
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await readFile(path)
    return true
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return false
    throw error
  }
}

/** Describes the command that starts with the machine or the user's session. */
interface AutostartSpec {
  /** Holds the program and its arguments; the program absolute. */
  command: readonly string[]
  env: Readonly<Record<string, string>>
  logFile: string
}

/** Holds the comment of a file that `up` writes. */
const origins = {
  systemd: '# Written by mirror (`mirror up --autostart`); `mirror down --no-autostart` removes it.',
  // XML allows no `--` in a comment.
  launchd: 'Written by mirror: `mirror up` with autostart; `mirror down` with no-autostart removes it.',
}

/** Holds the comment of a file that `init` prints, for the user to install. */
export const printedOrigins = {
  systemd: [
    '# Printed by mirror (`mirror init --template systemd`). To install it:',
    '#   mirror init --template systemd --output ~/.config/systemd/user/mirror.service',
    '#   mirror down; systemctl --user daemon-reload && systemctl --user enable --now mirror.service',
  ].join('\n'),
  launchd:
    'Printed by mirror. To install it: save it as ~/Library/LaunchAgents/dev-mirror.plist; then: mirror down; launchctl load ~/Library/LaunchAgents/dev-mirror.plist',
}

/** Renders a systemd unit from its template. Quoting: systemd.syntax(7), systemd.service(5) "Command lines". */
export function renderSystemdUnit(
  template: string,
  { command, env, logFile }: AutostartSpec,
  origin = origins.systemd,
): string {
  // `%` starts a specifier everywhere; `$` a variable in a command line only.
  const quoted = (text: string) =>
    `"${escapePercents(text).replaceAll(/["\\]/g, '\\$&').replaceAll('\n', '\\n').replaceAll('\t', '\\t')}"`
  return fill(template, {
    COMMAND: command.map((part) => quoted(part).replaceAll('$', '$$$$')).join(' '),
    ENVIRONMENT: Object.entries(env)
      .map(([name, value]) => `Environment=${quoted(`${name}=${value}`)}`)
      .join('\n'),
    LOG: escapePercents(logFile),
    ORIGIN: origin,
  })
}

/** Renders a launchd agent from its template. launchd.plist(5). */
export function renderLaunchAgent(
  template: string,
  { command, env, logFile }: AutostartSpec,
  origin = origins.launchd,
): string {
  return fill(template, {
    COMMAND: command.map((part) => `    <string>${escapeXml(part)}</string>`).join('\n'),
    ENVIRONMENT: Object.entries(env)
      .map(([name, value]) => `    <key>${escapeXml(name)}</key>\n    <string>${escapeXml(value)}</string>`)
      .join('\n'),
    LOG: escapeXml(logFile),
    ORIGIN: origin,
  })
}

function fill(template: string, values: Record<string, string>): string {
  return template.replaceAll(/@([A-Z]+)@/g, (placeholder, name: string) => values[name] ?? placeholder)
}

function escapePercents(text: string): string {
  return text.replaceAll('%', '%%')
}

const xmlEntities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }

function escapeXml(text: string): string {
  return text.replaceAll(/[&<>"]/g, (character) => xmlEntities[character]!)
}

/** Returns the autostart of this machine. Throws a MirrorError (exit 4) on a platform without one. */
export function getAutostart({ platform, env, homedir }: CommandEnvironment): Autostart {
  const templates = join(findPackageRoot(), 'templates')
  return createAutostart({ platform, env, homedir, templates, runCommand })
}

/**
 * Creates the command that starts the server with the current settings. `secrets`: whether secret variables are included; not for a file
 * that is printed.
 */
export function createAutostartSpec(
  program: string,
  surroundings: CommandEnvironment,
  paths: MirrorPaths,
  { secrets }: { readonly secrets: boolean },
): AutostartSpec {
  const { env, cwd } = surroundings
  const locations = {
    ...(env['MIRROR_HOME'] && { MIRROR_HOME: paths.stateDir.replace(/[/\\]state$/, '') }),
    ...(paths.configFileNamed && { MIRROR_CONFIG: paths.configFile }),
    ...(env['MIRROR_DATA'] && { MIRROR_DATA: paths.dataDir }),
  }
  const inherited = getInheritedVariables(env, cwd)
  const kept = Object.entries(inherited.kept).filter(([name]) => secrets || !inherited.secrets.includes(name))
  return {
    command: [process.execPath, ...getServeArguments(program)],
    env: { ...Object.fromEntries(kept), ...locations },
    logFile: paths.logFile,
  }
}

/** Returns warnings about variables that a start without the user's shell does not have. `file`: the unit or agent. */
export function getAutostartWarnings(config: Config, { env, cwd }: CommandEnvironment, file: string): string[] {
  const { secrets, dropped } = getInheritedVariables(env, cwd)
  const passwords = Object.entries(config.upstreams).flatMap(([host, { credentials }]) =>
    credentials.from === 'password-env'
      ? [
          `The variable ${credentials.passwordEnv} (password for ${host}) will not be there after a reboot: use passwordFile`,
        ]
      : [],
  )
  return [
    ...passwords,
    ...(secrets.length === 0 ? [] : [`${file} holds ${listOf(secrets)}; only you can read it`]),
    ...Array.from(dropped, ([name, why]) => `${name} will not be there after a reboot: ${why}`),
    ...(env['NODE_TLS_REJECT_UNAUTHORIZED'] === '0'
      ? ['NODE_TLS_REJECT_UNAUTHORIZED will not be there after a reboot: name the CA in upstreams.<host>.ca']
      : []),
  ]
}

const listOf = (names: readonly string[]) => new Intl.ListFormat('en').format(names)

type Environment = Readonly<Record<string, string | undefined>>

/** Lists the variables that a mirror gets when it is started without this environment, and those it does not get. */
interface InheritedVariables {
  readonly kept: Readonly<Record<string, string>>
  /** Lists the names of kept variables that are secret. */
  readonly secrets: readonly string[]
  /** Lists the variables that it would need but does not get, with the reason. */
  readonly dropped: ReadonlyMap<string, string>
}

/** Lists the variables that locate programs and files. */
const places = ['PATH', 'HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'XDG_STATE_HOME']
/** Lists the variables that locate Docker. */
const docker = [
  'DOCKER_HOST',
  'DOCKER_CONTEXT',
  'DOCKER_CONFIG',
  'DOCKER_TLS_VERIFY',
  'DOCKER_CERT_PATH',
  'DOCKER_AUTH_CONFIG',
  'KIND_EXPERIMENTAL_DOCKER_NETWORK',
]
/** Lists the variables with the CAs that Node, and credential helpers in other languages, trust. */
const trust = [
  'NODE_EXTRA_CA_CERTS',
  'NODE_USE_SYSTEM_CA',
  'NODE_OPTIONS',
  'SSL_CERT_FILE',
  'SSL_CERT_DIR',
  'OPENSSL_CONF',
  'CURL_CA_BUNDLE',
  'REQUESTS_CA_BUNDLE',
]
/** Lists variables that credential helpers read, in addition to those that match `cloud`. */
const helpers = ['PASSWORD_STORE_DIR', 'GNUPGHOME']
const inherited = new Set([...proxyVariables, ...places, ...docker, ...trust, ...helpers])
const cloud = /^(AWS|AZURE|GOOGLE|CLOUDSDK)_[A-Z0-9_]+$/

const files =
  /^(DOCKER_CONFIG|NODE_EXTRA_CA_CERTS|OPENSSL_CONF|GNUPGHOME|CLOUDSDK_CONFIG|GOOGLE_APPLICATION_CREDENTIALS|AWS_SHARED_CREDENTIALS_FILE|MIRROR_TLS_(CERT|KEY|CA)|MIRROR_REGISTRY_AUTH_HTPASSWD)$|_(FILE|DIR|PATH|BUNDLE)$/
const secret = /(SECRET|PASSWORD|TOKEN|PASSPHRASE)|_KEY$|^DOCKER_AUTH_CONFIG$/
/** Matches the options of Node for trust and for name resolution; others, such as a debugger's, belong to the session. */
const nodeOption =
  /^--((use-(system|openssl|bundled)-ca|openssl-legacy-provider|openssl-shared-config|tls-(min|max)-v1\.[0-3])$|(tls-cipher-list|openssl-config|dns-result-order)=)/
/**
 * Lists variables with credentials that expire within hours. A helper would prefer them to the credentials that it finds itself.
 */
const shortLived = [
  'AWS_SESSION_TOKEN',
  'AWS_SECURITY_TOKEN',
  'AWS_CREDENTIAL_EXPIRATION',
  'GOOGLE_OAUTH_ACCESS_TOKEN',
  'CLOUDSDK_AUTH_ACCESS_TOKEN',
]

/**
 * Returns the variables that a mirror needs from the environment of its setup: its settings, and those that the way to upstreams,
 * to Docker and to credentials depends on. Relative paths become absolute: a service starts elsewhere.
 */
function getInheritedVariables(env: Environment, cwd: string): InheritedVariables {
  const settings = new Set(listSettingVariables())
  const isTemporary = Boolean(env['AWS_SESSION_TOKEN'] || env['AWS_SECURITY_TOKEN'])
  const dies = new Set([...shortLived, ...(isTemporary ? ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'] : [])])
  const kept: Record<string, string> = {}
  const dropped = new Map<string, string>()
  for (const [name, value] of Object.entries(env)) {
    if (!value || !(settings.has(name) || inherited.has(name) || cloud.test(name))) continue
    if (dies.has(name)) dropped.set(name, 'it is valid for hours only; a profile or a file of credentials lasts')
    // Allow only these control characters, because a unit and a property list can hold no others.
    else if (/[^\P{Cc}\t\n]/u.test(value)) dropped.set(name, 'it holds control characters')
    else if (name === 'NODE_OPTIONS') {
      const options = value.split(/\s+/).filter((option) => nodeOption.test(option))
      if (options.length > 0) kept[name] = options.join(' ')
    } else kept[name] = toAbsolute(name, value, cwd)
  }
  return { kept, secrets: Object.keys(kept).filter((name) => isSecret(name, kept[name]!)), dropped }
}

/** Returns true if a variable's value is secret. */
function isSecret(name: string, value: string): boolean {
  if (proxyVariables.includes(name)) return /\/\/[^@/]*:[^@/]*@/.test(value)
  return secret.test(name) && !files.test(name)
}

function toAbsolute(name: string, value: string, cwd: string): string {
  // Programs that know `~` find it themselves.
  const one = (path: string) => (path === '' || path.startsWith('~') ? path : resolve(cwd, path))
  if (name === 'SSL_CERT_DIR') return value.split(':').map(one).join(':')
  return files.test(name) ? one(value) : value
}
