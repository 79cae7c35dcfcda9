import { resolve } from 'node:path'
import { settingVariables } from '../config/load.ts'
import { proxyVariables } from '../upstream/proxy.ts'

type Environment = Readonly<Record<string, string | undefined>>

/** What of an environment goes on to a mirror that is started without it, and what does not. */
export interface InheritedVariables {
  readonly kept: Readonly<Record<string, string>>
  /** Names of what is kept and is a secret. */
  readonly secrets: readonly string[]
  /** What would be needed and is not kept, with the reason. */
  readonly dropped: ReadonlyMap<string, string>
}

/** Where programs and files are. */
const places = ['PATH', 'HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'XDG_STATE_HOME']
/** The way to Docker. */
const docker = [
  'DOCKER_HOST',
  'DOCKER_CONTEXT',
  'DOCKER_CONFIG',
  'DOCKER_TLS_VERIFY',
  'DOCKER_CERT_PATH',
  'DOCKER_AUTH_CONFIG',
  'KIND_EXPERIMENTAL_DOCKER_NETWORK',
]
/** Whom Node, and credential helpers in other languages, trust. */
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
/** What credential helpers go by, and all that begins as `cloud` says. */
const helpers = ['PASSWORD_STORE_DIR', 'GNUPGHOME']
const inherited = new Set([...proxyVariables, ...places, ...docker, ...trust, ...helpers])
const cloud = /^(AWS|AZURE|GOOGLE|CLOUDSDK)_[A-Z0-9_]+$/

const files =
  /^(DOCKER_CONFIG|NODE_EXTRA_CA_CERTS|OPENSSL_CONF|GNUPGHOME|CLOUDSDK_CONFIG|GOOGLE_APPLICATION_CREDENTIALS|AWS_SHARED_CREDENTIALS_FILE|MIRROR_TLS_(CERT|KEY|CA)|MIRROR_REGISTRY_AUTH_HTPASSWD)$|_(FILE|DIR|PATH|BUNDLE)$/
const secret = /(SECRET|PASSWORD|TOKEN|PASSPHRASE)|_KEY$|^DOCKER_AUTH_CONFIG$/
/** Options of Node that say whom it trusts and how it finds addresses; others belong to the session, a debugger's above all. */
const nodeOption =
  /^--((use-(system|openssl|bundled)-ca|openssl-legacy-provider|openssl-shared-config|tls-(min|max)-v1\.[0-3])$|(tls-cipher-list|openssl-config|dns-result-order)=)/
/** Dead within hours, and preferred to what a helper would find by itself. */
const shortLived = [
  'AWS_SESSION_TOKEN',
  'AWS_SECURITY_TOKEN',
  'AWS_CREDENTIAL_EXPIRATION',
  'GOOGLE_OAUTH_ACCESS_TOKEN',
  'CLOUDSDK_AUTH_ACCESS_TOKEN',
]

/**
 * The variables that a mirror needs of the environment it is set up in: its settings, and all that the way to upstreams, to
 * Docker and to credentials depends on. Relative paths become absolute: a service starts elsewhere.
 */
export function inheritedVariables(env: Environment, cwd: string): InheritedVariables {
  const settings = new Set(settingVariables())
  const isTemporary = Boolean(env['AWS_SESSION_TOKEN'] || env['AWS_SECURITY_TOKEN'])
  const dies = new Set([...shortLived, ...(isTemporary ? ['AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'] : [])])
  const kept: Record<string, string> = {}
  const dropped = new Map<string, string>()
  for (const [name, value] of Object.entries(env)) {
    if (!value || !(settings.has(name) || inherited.has(name) || cloud.test(name))) continue
    if (dies.has(name)) dropped.set(name, 'it is valid for hours only; a profile or a file of credentials lasts')
    // Neither a unit nor a property list can hold other control characters than these.
    else if (/[^\P{Cc}\t\n]/u.test(value)) dropped.set(name, 'it holds control characters')
    else if (name === 'NODE_OPTIONS') {
      const options = value.split(/\s+/).filter((option) => nodeOption.test(option))
      if (options.length > 0) kept[name] = options.join(' ')
    } else kept[name] = absolute(name, value, cwd)
  }
  return { kept, secrets: Object.keys(kept).filter((name) => isSecret(name, kept[name]!)), dropped }
}

/** Whether a variable's value is not for everybody's eyes. */
function isSecret(name: string, value: string): boolean {
  if (proxyVariables.includes(name)) return /\/\/[^@/]*:[^@/]*@/.test(value)
  return secret.test(name) && !files.test(name)
}

function absolute(name: string, value: string, cwd: string): string {
  // Programs that know `~` find it themselves.
  const one = (path: string) => (path === '' || path.startsWith('~') ? path : resolve(cwd, path))
  if (name === 'SSL_CERT_DIR') return value.split(':').map(one).join(':')
  return files.test(name) ? one(value) : value
}
