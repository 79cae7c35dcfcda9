import { parseObject } from '../lib/json-object.ts'
import type { RunCommand } from '../lib/run-command.ts'
import { credentialOf, unusableCredential, type Credential } from './credential.ts'

const timeoutMs = 15_000

/**
 * Runs `docker-credential-<name> get` for a server; undefined when it holds nothing for it. Throws an UpstreamError (denied)
 * that names the helper and quotes none of its output.
 * https://github.com/docker/docker-credential-helpers#development
 */
export async function askHelper(
  name: string,
  server: string,
  host: string,
  runCommand: RunCommand,
): Promise<Credential | undefined> {
  const program = `docker-credential-${name}`
  const result = await runCommand(program, ['get'], { input: server, timeoutMs })
  if (!result) throw unusableCredential(host, `${program}, which Docker's config.json names, is not installed`)
  if (result.exitCode === 0) {
    const credential = parseAnswer(result.stdout)
    if (credential) return credential
    throw unusableCredential(host, `${program} answered with something that is no credential`)
  }
  if (/credentials not found/i.test(result.stdout + result.stderr)) return undefined
  const how = result.exitCode === undefined ? 'did not finish' : `failed with exit code ${result.exitCode}`
  throw unusableCredential(host, `${program} ${how}`)
}

function parseAnswer(text: string): Credential | undefined {
  const { Username: username, Secret: secret } = parseObject(text) ?? {}
  if (typeof username !== 'string' || typeof secret !== 'string' || username === '' || secret === '') return undefined
  return credentialOf(username, secret)
}
