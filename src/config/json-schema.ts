import { defaultConfig, toConfigDocument } from './config.ts'
import { type JsonSchema, settings } from './schema.ts'

/** Names the file with the schema, beside mirror.yaml. */
export const schemaFileName = 'mirror.schema.json'

/** Marks a schema that mirror wrote, and may replace. */
export const schemaMark = 'Written by mirror init; mirror up replaces it after an update.'

/** Describes each key of mirror.yaml for editors. `*` stands for the name of a registry. */
const descriptions: Readonly<Record<string, string>> = {
  cache: 'The pull-through cache of upstream registries.',
  'cache.listen':
    'Addresses that clients pull from. An address beyond this machine is open to everyone who can reach it.',
  'cache.maxSize': 'Size beyond which the least recently pulled images are evicted, such as 20GiB; 0 = no limit.',
  'cache.maxAge': 'Content without a request during this much uptime is evicted; 0 = keep.',
  'cache.minFree': 'Space to keep free on the disk, such as 1GiB.',
  'cache.tagFreshness': 'A tag is served for this long before the upstream is asked again; 0 = always ask.',
  'cache.stale': 'When to serve a tag that cannot be confirmed; always also means after 401, 403 and 404.',
  'cache.offline': 'Never contact an upstream.',
  'cache.verifyReads': 'When to hash content that is read; auto means after an unclean stop.',
  'cache.shareCredentials': 'Let clients beyond this machine use your credentials, and content fetched with them.',
  'cache.prefetch': 'How much of an image is fetched ahead of its client.',
  'cache.prefetch.layers': 'Layers of one image that are fetched ahead; 0 = none.',
  'cache.prefetch.rangesPerBlob': 'Connections for one large blob.',
  'cache.prefetch.rangeBytes': 'Bytes of one range.',
  'cache.prefetch.rangeMinSize': 'Size from which a blob is fetched in ranges.',
  'cache.timeouts': 'Time limits of requests to upstreams, each more than 0 and at most 1h.',
  'cache.timeouts.connect': 'Time until the connection is open.',
  'cache.timeouts.headers': 'Time until the response begins.',
  'cache.timeouts.idle': 'Time without a byte after which a transfer ends.',
  'cache.timeouts.revalidate': 'Time that a client waits for the confirmation of a tag before it gets the cached one.',
  registry: 'The registry for pushed images.',
  'registry.enabled': 'Run the registry.',
  'registry.listen': 'Addresses of the registry.',
  'registry.deletes': 'Allow clients to delete images.',
  'registry.networks': 'What containers of Docker networks may do: only pull, or also push and delete.',
  'registry.auth': 'Passwords of the registry.',
  'registry.auth.htpasswd': 'File of user names and bcrypt hashes.',
  admin: 'The listener for status, metrics and commands.',
  'admin.listen': 'Addresses of the listener.',
  networks: 'Docker networks on whose gateway the mirror also listens (Linux).',
  allowedHosts: 'Additional names by which clients reach the mirror, without a port.',
  log: 'The log.',
  'log.level': 'The lowest level that is logged.',
  upstreams: 'Additional registries, and settings of the known ones, by the name that images have.',
  'upstreams.*': 'A registry. Without keys it is asked at https://, with your Docker credentials.',
  'upstreams.*.url': 'Address of the registry or of a company cache, before /v2. http:// is allowed, with a warning.',
  'upstreams.*.prefix': 'Path below which a company cache keeps the images of this registry.',
  'upstreams.*.credentials':
    'docker-config (config.json, helpers), anonymous, or a user name with the source of the password.',
  'upstreams.*.credentials.username': 'User name.',
  'upstreams.*.credentials.passwordFile': 'File that holds the password.',
  'upstreams.*.credentials.passwordEnv': 'Environment variable that holds the password.',
  'upstreams.*.tokenHosts': 'Additional hosts of token servers, which may receive the credential.',
  'upstreams.*.ca': 'File with additional CA certificates (PEM).',
  'upstreams.*.tagFreshness': 'The same as cache.tagFreshness, for this registry.',
  defaultUpstream: 'Registry of requests that name none.',
  tls: 'Certificate of the cache and the registry.',
  'tls.cert': 'File with the certificate (PEM).',
  'tls.key': 'File with the private key (PEM).',
  'tls.ca': 'File with the CA that clients should trust (PEM).',
}

/** Creates the JSON schema of mirror.yaml from the table of settings, with descriptions and defaults. */
export function createConfigSchema(): JsonSchema {
  return {
    $schema: 'http://json-schema.org/draft-07/schema#',
    $comment: schemaMark,
    title: 'mirror.yaml',
    ...annotate(settings.schema, '', toConfigDocument(defaultConfig())),
  }
}

/** Renders the schema as a file. */
export function renderConfigSchema(): string {
  return `${JSON.stringify(createConfigSchema(), undefined, 2)}\n`
}

function annotate(schema: JsonSchema, path: string, defaults: unknown): JsonSchema {
  const { properties, additionalProperties, anyOf } = schema
  const description = descriptions[path]
  const below = (key: string) => (path === '' ? key : `${path}.${key}`)
  return {
    ...(description !== undefined && { description }),
    ...schema,
    ...(properties && {
      properties: Object.fromEntries(
        Object.entries(properties).map(([key, value]) => [key, annotate(value, below(key), getMember(defaults, key))]),
      ),
    }),
    ...(typeof additionalProperties === 'object' && {
      additionalProperties: annotate(additionalProperties, below('*'), undefined),
    }),
    ...(anyOf && { anyOf: anyOf.map((choice) => (choice.properties ? annotate(choice, path, undefined) : choice)) }),
    ...(!properties &&
      defaults !== undefined &&
      typeof additionalProperties !== 'object' && {
        default: toReadable(defaults),
      }),
  }
}

function getMember(value: unknown, key: string): unknown {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>)[key] : undefined
}

const units: readonly (readonly [pattern: RegExp, steps: readonly (readonly [amount: number, unit: string])[]])[] = [
  [
    /^(\d+)B$/,
    [
      [1024 ** 4, 'TiB'],
      [1024 ** 3, 'GiB'],
      [1024 ** 2, 'MiB'],
      [1024, 'KiB'],
    ],
  ],
  [
    /^(\d+)ms$/,
    [
      [3_600_000, 'h'],
      [60_000, 'm'],
      [1000, 's'],
    ],
  ],
]

/** Writes a size or a duration in its largest unit: `20GiB` for `21474836480B`. */
function toReadable(value: unknown): unknown {
  if (typeof value !== 'string') return value
  for (const [pattern, steps] of units) {
    const amount = Number(pattern.exec(value)?.[1])
    const step = amount > 0 ? steps.find(([size]) => amount % size === 0) : undefined
    if (step) return `${amount / step[0]}${step[1]}`
  }
  return value
}
