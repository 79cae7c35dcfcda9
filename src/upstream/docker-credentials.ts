import type { Clock } from '../lib/clock.ts'
import type { RunCommand } from '../lib/run-command.ts'
import { isSameCredential, type Credential, type Credentials } from './credential.ts'
import { askHelper } from './credential-helper.ts'
import { openDockerConfig, type DockerEntry } from './docker-config.ts'

/** Helpers hand out passwords that live for hours (ECR: 12 h), and asking one costs a process. */
const keepMs = 10 * 60_000
/** A helper that failed, or whose word the upstream refused, is not run again for every request. */
const quietMs = 5000

interface HelperRun {
  readonly entry: DockerEntry
  readonly result: Promise<Credential | undefined>
  readonly startedAt: number
  /** Monotonic ms. */
  goodUntil: number
}

/** The credential that Docker would use: from the registry's helper, the credential store, or config.json itself. */
export function createDockerCredentials(options: {
  readonly host: string
  readonly dockerConfig: string
  readonly runCommand: RunCommand
  readonly clock: Clock
}): Credentials {
  const { host, clock, runCommand } = options
  const config = openDockerConfig(options.dockerConfig, host, clock)
  let run: HelperRun | undefined

  function fromHelper(entry: DockerEntry): Promise<Credential | undefined> {
    const { helper } = entry
    if (!helper) return Promise.resolve(undefined)
    if (run && run.entry === entry && clock.monotonic() < run.goodUntil) return run.result
    const startedAt = clock.monotonic()
    const started: HelperRun = {
      entry,
      result: askHelper(helper.name, helper.server, host, runCommand),
      startedAt,
      goodUntil: startedAt + keepMs,
    }
    started.result.catch(() => (started.goodUntil = startedAt + quietMs))
    run = started
    return started.result
  }

  async function find(): Promise<Credential | undefined> {
    const entry = await config.entry()
    const isOver = entry.inlineUntil !== undefined && entry.inlineUntil <= clock.wall()
    return (await fromHelper(entry)) ?? (isOver ? undefined : entry.inline)
  }

  return {
    find,
    async renew(refused) {
      if (run && clock.monotonic() - run.startedAt >= quietMs) run = undefined
      const credential = await find()
      return credential && isSameCredential(credential, refused) ? undefined : credential
    },
  }
}
