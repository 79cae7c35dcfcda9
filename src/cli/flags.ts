import { boolean, custom, integer, string } from '@oclif/core/flags'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { parseDuration } from '../lib/units.ts'

// Defines the flags that several commands share. A flag that changes a setting has the setting's `MIRROR_*` variable.

export const jsonFlag = boolean({ description: 'print JSON' })

export const dryRunFlag = boolean({ description: 'show what would be done and change nothing' })

export const yesFlag = boolean({ char: 'y', description: 'apply without asking' })

/** Parses a duration into ms. */
export const durationFlag = custom<number>({
  helpValue: 'DURATION',
  parse: (text) => {
    const duration = parseDuration(text)
    if (duration !== undefined) return Promise.resolve(duration)
    throw new MirrorError(`${JSON.stringify(text)} is not a duration such as 20s, 36h or 14d.`, {
      exit: exitCode.usage,
    })
  },
})

/** Accepts a version as programs print it: `28.3`, `v1.9.1`, `20.10.24+dfsg1`. */
export const versionFlag = custom({
  helpValue: 'V',
  parse: (text) => {
    if (/^(?:\d+:)?v?\d+(\.\d+)*([-+~.][\w.+~-]+)?$/.test(text)) return Promise.resolve(text)
    throw new MirrorError(`${JSON.stringify(text)} is not a version such as 28.3.`, { exit: exitCode.usage })
  },
})

export const configFlag = string({
  description: 'config file (default ~/.config/mirror/mirror.yaml on Linux)',
  helpValue: 'FILE',
  env: 'MIRROR_CONFIG',
})

export const dataFlag = string({
  description: 'data folder (default ~/.local/share/mirror on Linux)',
  helpValue: 'DIR',
  env: 'MIRROR_DATA',
})

const port = { helpValue: 'N', min: 0, max: 65_535 }

export const cachePortFlag = integer({
  ...port,
  description: 'port of the cache (default 5055, 0 picks a free one)',
  env: 'MIRROR_CACHE_PORT',
})

export const registryPortFlag = integer({
  ...port,
  description: 'port of the registry (default 5001, 0 picks a free one)',
  env: 'MIRROR_REGISTRY_PORT',
})

export const adminPortFlag = integer({
  ...port,
  description: 'port of the admin API (default 5056, 0 picks a free one)',
  env: 'MIRROR_ADMIN_PORT',
})

export const noRegistryFlag = boolean({
  description: 'do not run the registry for pushed images',
  env: 'MIRROR_NO_REGISTRY',
})

export const networkFlag = string({
  description: 'Docker network to serve in addition to kind (default: none)',
  helpValue: 'NAME',
  multiple: true,
  env: 'MIRROR_NETWORK',
})

export const imageFlag = string({
  description: 'container image (default: the one of this version)',
  helpValue: 'REF',
  env: 'MIRROR_IMAGE',
})

export const memoryFlag = string({
  description: 'memory of the container (default 512MiB)',
  helpValue: 'SIZE',
  env: 'MIRROR_MEMORY',
})

export const credentialsFlag = string({
  description: 'registry whose credential to share (default: none)',
  helpValue: 'HOST',
  multiple: true,
})

/** Maps flags of `up` to the variables that they stand for. The server reads them wherever it is started. */
export function toFlagVariables(flags: {
  config?: string | undefined
  data?: string | undefined
  'cache-port'?: number | undefined
  'registry-port'?: number | undefined
  'admin-port'?: number | undefined
  'no-registry'?: boolean | undefined
  network?: string[] | undefined
  image?: string | undefined
  memory?: string | undefined
}): Record<string, string | undefined> {
  return {
    MIRROR_CONFIG: flags.config,
    MIRROR_DATA: flags.data,
    MIRROR_CACHE_PORT: flags['cache-port']?.toString(),
    MIRROR_REGISTRY_PORT: flags['registry-port']?.toString(),
    MIRROR_ADMIN_PORT: flags['admin-port']?.toString(),
    MIRROR_IMAGE: flags.image,
    MIRROR_MEMORY: flags.memory,
    MIRROR_NO_REGISTRY: flags['no-registry'] ? 'true' : undefined,
    // Accept a text, too: the framework gives the text of the variable as it is, not as a list.
    MIRROR_NETWORK: flags.network === undefined ? undefined : [flags.network].flat().join(','),
  }
}
