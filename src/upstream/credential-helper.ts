import { parseObject } from '../lib/json.ts'
import type { CommandResult, RunCommand } from '../lib/process.ts'
import { credentialOf, unusableCredential, type Credential } from './credential.ts'
import { member } from './docker-auth.ts'
import type { DockerEntry } from './docker-config.ts'

const timeoutMs = 15_000
/** More than any credential takes. */
const largestAnswer = 256 * 1024
/** What the helpers' library says for itself: safe to quote. */
const knownWords = ['no credentials server URL', 'no credentials username']

/**
 * Runs `docker-credential-<name> get` for a server; undefined when it holds nothing for it. Throws an UpstreamError that names
 * the helper, and quotes nothing of its output that could be a secret.
 * https://github.com/docker/docker-credential-helpers#development
 */
export async function askHelper(
  { name, server, key }: NonNullable<DockerEntry['helper']>,
  host: string,
  runCommand: RunCommand,
): Promise<Credential | undefined> {
  const program = `docker-credential-${name}`
  const named = `${program}, which ${key} in Docker's config.json names,`
  const result = await runCommand(program, ['get'], { input: server, timeoutMs })
  if (!result) throw unusableCredential(host, `${named} is not installed, or the program that runs it is missing`)
  if (result.exitCode !== 0) {
    if (/credentials not found/i.test(result.stdout + result.stderr)) return undefined
    throw unusableCredential(host, `${named} ${howItFailed(result)}`)
  }
  const answer = parseFirstObject(result.stdout.slice(0, largestAnswer))
  const [username, secret] = answer ? [member(answer, 'Username') ?? '', member(answer, 'Secret') ?? ''] : []
  // An answer without either is how some say that they hold nothing.
  if (username === '' && secret === '') return undefined
  if (typeof username === 'string' && username !== '' && typeof secret === 'string')
    return credentialOf(username, secret)
  throw unusableCredential(host, `${named} answered with something that is no credential`)
}

function howItFailed({ exitCode, stdout, stderr }: CommandResult): string {
  const said = knownWords.find((words) => stdout.trim() === words)
  if (exitCode !== undefined) return `failed with exit code ${exitCode}${said === undefined ? '' : ` (${said})`}`
  const refusal = stdout === '' ? /^spawn\b.* (E[A-Z0-9]+)$/.exec(stderr.trim())?.[1] : undefined
  return refusal === undefined ? 'did not finish' : `cannot be started (${refusal})`
}

/** The JSON object that a text begins with: Docker does not read what comes after it. */
function parseFirstObject(text: string): Record<string, unknown> | undefined {
  for (let end = text.indexOf('}'); end !== -1; end = text.indexOf('}', end + 1)) {
    const object = parseObject(text.slice(0, end + 1))
    if (object) return object
  }
  return undefined
}
