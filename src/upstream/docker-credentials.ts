import type { Clock } from '../lib/time.ts'
import type { RunCommand } from '../lib/process.ts'
import { isSameCredential, type Credential, type Credentials } from './credential.ts'
import { askHelper } from './credential-helper.ts'
import { authVariable, parseAuthVariable, serverOf } from './docker-auth.ts'
import { openDockerConfig, type DockerEntry } from './docker-config.ts'

/** Helpers hand out passwords that live for hours (ECR: 12 h), and asking one costs a process. */
const keepMs = 10 * 60_000
/** Older than this, an answer does not count while the helper is asked again: somebody else may have logged in since. */
const oldestMs = 2 * keepMs
/** A helper that failed, or whose word the upstream refused, is not run again for every request. */
const quietMs = 5000

interface HelperRun {
  readonly entry: DockerEntry
  readonly result: Promise<Credential | undefined>
  readonly startedAt: number
  isSettled: boolean
  /** Monotonic ms. */
  goodUntil: number
}

/** The credential that Docker would use: from DOCKER_AUTH_CONFIG, the registry's helper, the credential store, or config.json itself. */
export function createDockerCredentials(options: {
  readonly host: string
  readonly dockerConfig: string
  readonly env: Readonly<Record<string, string | undefined>>
  readonly runCommand: RunCommand
  readonly clock: Clock
}): Credentials {
  const { host, clock, runCommand } = options
  const config = openDockerConfig(options.dockerConfig, host, clock)
  const given = parseAuthVariable(options.env[authVariable] ?? '')?.get(serverOf(host))
  let run: HelperRun | undefined
  /** What a helper has said last. */
  let known:
    | { readonly entry: DockerEntry; readonly credential: Credential | undefined; readonly askedAt: number }
    | undefined

  function fromHelper(entry: DockerEntry, helper: NonNullable<DockerEntry['helper']>): Promise<Credential | undefined> {
    if (!run || run.entry !== entry || clock.monotonic() >= run.goodUntil) run = start(entry, helper)
    // Asked again after ten minutes, a helper keeps nobody waiting.
    const isRecent = known?.entry === entry && clock.monotonic() - known.askedAt < oldestMs
    if (known && isRecent && !run.isSettled) return Promise.resolve(known.credential)
    return run.result
  }

  function start(entry: DockerEntry, helper: NonNullable<DockerEntry['helper']>): HelperRun {
    const startedAt = clock.monotonic()
    const started: HelperRun = {
      entry,
      result: askHelper(helper, host, runCommand),
      startedAt,
      isSettled: false,
      goodUntil: startedAt + keepMs,
    }
    void settle(started)
    return started
  }

  async function settle(started: HelperRun): Promise<void> {
    try {
      const credential = await started.result
      if (run === started) known = { entry: started.entry, credential, askedAt: started.startedAt }
    } catch {
      // Whoever waits for the result is told.
      if (run === started) known = undefined
      started.goodUntil = clock.monotonic() + quietMs
    } finally {
      started.isSettled = true
    }
  }

  async function find(): Promise<Credential | undefined> {
    if (given) return given
    const entry = await config.entry()
    // A helper has no such thing to give: Docker takes it from the file, whoever has the rest.
    if (entry.helper && entry.inline?.kind !== 'registry-token') return fromHelper(entry, entry.helper)
    const isOver = entry.inlineUntil !== undefined && entry.inlineUntil <= clock.wall()
    return isOver ? undefined : entry.inline
  }

  return {
    find,
    async renew(refused) {
      known = undefined
      if (run && clock.monotonic() - run.startedAt >= quietMs) run = undefined
      const credential = await find()
      return credential && isSameCredential(credential, refused) ? undefined : credential
    },
  }
}
