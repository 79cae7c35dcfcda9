import { mkdir, writeFile } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { onTestFinished, vi } from 'vitest'
import { temporaryHome } from './mirror.ts'

/** The name in Docker's configuration; its program is `docker-credential-of-a-test`. */
export const helperName = 'of-a-test'

export interface CredentialHelper {
  /** The folder of Docker's configuration. */
  readonly folder: string
  /** Variables for a process to find the helper and the configuration. */
  readonly env: Readonly<Record<'DOCKER_CONFIG' | 'PATH', string>>
  /** Writes Docker's config.json. */
  configure(config: object): Promise<void>
}

/** Creates a credential helper with this shell script, and a folder for Docker's configuration. */
export async function makeCredentialHelper(body: string): Promise<CredentialHelper> {
  const folder = await temporaryHome()
  const programs = join(folder, 'bin')
  await mkdir(programs)
  await writeFile(join(programs, `docker-credential-${helperName}`), `#!/bin/sh\n${body}\n`, { mode: 0o755 })
  return {
    folder,
    env: { DOCKER_CONFIG: folder, PATH: `${programs}${delimiter}${process.env['PATH']}` },
    configure: (config) => writeFile(join(folder, 'config.json'), JSON.stringify(config)),
  }
}

/** Sets the variables of the helper in this process until the test ends. */
export function useCredentialHelper({ env }: CredentialHelper): void {
  for (const [name, value] of Object.entries(env)) vi.stubEnv(name, value)
  onTestFinished(() => void vi.unstubAllEnvs())
}
