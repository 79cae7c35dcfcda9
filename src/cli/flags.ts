import { boolean, custom, integer, string } from '@oclif/core/flags'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { parseDuration } from '../lib/units.ts'

// Each shared flag in one place; a flag and its MIRROR_* variable mean the same.

export const jsonFlag = boolean({ description: 'print JSON' })

export const dryRunFlag = boolean({ description: 'show what would be done, and change nothing' })

export const yesFlag = boolean({ char: 'y', description: 'apply without asking' })

/** A duration, in ms. */
export const durationFlag = custom<number>({
  helpValue: 'DURATION',
  parse: (text) => {
    const duration = parseDuration(text)
    if (duration !== undefined) return Promise.resolve(duration)
    throw new MirrorError(`${JSON.stringify(text)} is not a duration such as 36h or 14d.`, { exit: exitCode.usage })
  },
})

export const configFlag = string({
  description: 'the configuration file, instead of the usual one',
  helpValue: 'FILE',
  env: 'MIRROR_CONFIG',
})

export const dataFlag = string({
  description: 'the folder for cached and pushed content',
  helpValue: 'DIR',
  env: 'MIRROR_DATA',
})

export const cachePortFlag = integer({
  description: 'the port of the cache (5055); 0 picks a free one',
  helpValue: 'N',
  min: 0,
  max: 65_535,
  env: 'MIRROR_CACHE_PORT',
})

export const registryPortFlag = integer({
  description: 'the port of the registry for pushed images (5001); 0 picks a free one',
  helpValue: 'N',
  min: 0,
  max: 65_535,
  env: 'MIRROR_REGISTRY_PORT',
})

export const adminPortFlag = integer({
  description: 'the port for status and control (5056); 0 picks a free one',
  helpValue: 'N',
  min: 0,
  max: 65_535,
  env: 'MIRROR_ADMIN_PORT',
})

export const noRegistryFlag = boolean({
  description: 'do not run the registry for pushed images',
  env: 'MIRROR_NO_REGISTRY',
})

export const networkFlag = string({
  description:
    'a Docker network whose containers can reach the mirror, added to those of mirror.yaml (kind); may be given more than once',
  helpValue: 'NAME',
  multiple: true,
  env: 'MIRROR_NETWORK',
})

export const imageFlag = string({
  description: 'the image for --runtime container; without it one of this very version is found or made',
  helpValue: 'REF',
  env: 'MIRROR_IMAGE',
})

export const memoryFlag = string({
  description: 'the memory of the container (--runtime container; 512MiB)',
  helpValue: 'SIZE',
  env: 'MIRROR_MEMORY',
})

export const credentialsFlag = string({
  description:
    'a registry whose credential is handed to the container (--runtime container); may be given more than once. Without it the ' +
    'container keeps those that it has; "none" takes them away',
  helpValue: 'HOST',
  multiple: true,
})

/** The variables that flags of `up` stand for: the server reads them, wherever it is started. */
export function flagsAsVariables(flags: {
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
    // From its variable the framework takes a single text.
    MIRROR_NETWORK: flags.network === undefined ? undefined : [flags.network].flat().join(','),
  }
}
