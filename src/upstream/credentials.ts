import { readFile } from 'node:fs/promises'
import type { Clock } from '../lib/time.ts'
import { errnoOf } from '../lib/errors.ts'
import type { RunCommand } from '../lib/process.ts'
import { canonicalRegistry } from '../oci/reference.ts'
import { credentialOf, isSameCredential, unusableCredential, type Credential, type Credentials } from './credential.ts'
import { createDockerCredentials } from './docker-credentials.ts'

export type CredentialsSource =
  | { readonly from: 'docker-config' }
  | { readonly from: 'anonymous' }
  | { readonly from: 'password-file'; readonly username: string; readonly passwordFile: string }
  | { readonly from: 'password-env'; readonly username: string; readonly passwordEnv: string }

export interface CredentialsOptions {
  readonly host: string
  readonly source: CredentialsSource
  /** Path of Docker's config.json; see `dockerConfigPath`. */
  readonly dockerConfig: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly runCommand: RunCommand
  readonly clock: Clock
}

/**
 * Whose credential an upstream is asked with. A company's cache that keeps a registry's images below a prefix has accounts of its
 * own; the registry's credential is not for it.
 */
export function credentialHostOf(host: string, { url, prefix }: { url?: string; prefix?: string | undefined }): string {
  return url === undefined || prefix === undefined ? host : canonicalRegistry(new URL(url).host)
}

/** The credential of one upstream, from wherever the user keeps it. */
export function createCredentials(options: CredentialsOptions): Credentials {
  const { source, host } = options
  switch (source.from) {
    case 'docker-config':
      return createDockerCredentials(options)
    case 'anonymous':
      return { find: async () => undefined, renew: async () => undefined }
    case 'password-file':
      return readEachTime(async () => credentialOf(source.username, await readPassword(host, source.passwordFile)))
    case 'password-env':
      return readEachTime(async () => {
        const password = options.env[source.passwordEnv]
        if (password) return credentialOf(source.username, password)
        throw unusableCredential(host, `the environment variable ${source.passwordEnv} is not set`)
      })
  }
}

function readEachTime(find: () => Promise<Credential>): Credentials {
  return {
    find,
    async renew(refused) {
      const credential = await find()
      return isSameCredential(credential, refused) ? undefined : credential
    },
  }
}

async function readPassword(host: string, path: string): Promise<string> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    throw unusableCredential(host, `the file ${path} cannot be read (${errnoOf(error)})`)
  }
  const password = text.replace(/\r?\n$/, '')
  if (password === '') throw unusableCredential(host, `the file ${path} is empty`)
  return password
}
