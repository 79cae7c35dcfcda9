import { readFile } from 'node:fs/promises'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { exitCode, getErrno, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import type { Clock } from '../../lib/time.ts'
import type { ClientReload } from '../types.ts'
import { emptyDaemonJsonLists, getListedMirrors, isSameUrl } from './daemon-json.ts'
import { type DockerdProcess, findDockerd } from './engines.ts'

/** Sets the time between polls of `docker info` after a reload, ms. */
const pollMs = 100
/** Limits the time until dockerd has applied a reload, ms. */
const maxWaitMs = 5000

interface ReloadedDockerd {
  readonly endpoint: DockerEndpoint
  readonly daemonJson: string
  /** Holds the version of Docker; undefined when unknown. */
  readonly version?: string | undefined
  /** Holds the process at the time of detection. */
  readonly dockerd: DockerdProcess | undefined
  readonly isRootless: boolean
}

/** Creates a reload that sends SIGHUP to dockerd, then polls the engine until it lists the mirrors of daemon.json. */
export function createDockerReload(
  { endpoint, daemonJson, version, dockerd, isRootless }: ReloadedDockerd,
  clock: Clock,
): ClientReload {
  return {
    question: 'Reload dockerd now (SIGHUP, no containers stop)?',
    done: `Sent SIGHUP to dockerd${dockerd === undefined ? '' : ` (pid ${dockerd.pid})`}.`,
    async run() {
      const running = await findDockerd(endpoint)
      if (running === undefined)
        throw new MirrorError('Found no dockerd to reload.', {
          exit: exitCode.missing,
          hints: [getReloadCommand(undefined, isRootless)],
        })
      sendHangup(running, isRootless)
      await waitUntilReloaded(endpoint, daemonJson, clock)
    },
    planInterim: (mirror, files) => emptyDaemonJsonLists(mirror, daemonJson, files, version),
  }
}

/** Returns the command that a user can run for the same reload. */
export function getReloadCommand(dockerd: DockerdProcess | undefined, isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return dockerd === undefined
    ? `${sudo}systemctl ${isRootless ? '--user ' : ''}reload docker`
    : `${sudo}kill -HUP ${dockerd.pid}`
}

function sendHangup(dockerd: DockerdProcess, isRootless: boolean): void {
  try {
    process.kill(dockerd.pid, 'SIGHUP')
  } catch (cause) {
    if (getErrno(cause) !== 'EPERM' && getErrno(cause) !== 'ESRCH') throw cause
    throw new MirrorError(`No permission to signal dockerd (pid ${dockerd.pid}).`, {
      exit: exitCode.usage,
      hints: [getReloadCommand(dockerd, isRootless)],
      cause,
    })
  }
}

/** Polls the engine until it lists the mirrors of daemon.json. Throws MirrorError after `maxWaitMs`: dockerd reports errors in its log only. */
async function waitUntilReloaded(endpoint: DockerEndpoint, daemonJson: string, clock: Clock): Promise<void> {
  const text = await ifVisible(readFile(daemonJson, 'utf8'))
  const expected = text === undefined ? undefined : getListedMirrors(daemonJson, text)
  if (expected === undefined) return
  const engine = createDockerEngine(endpoint)
  const end = clock.monotonic() + maxWaitMs
  while (clock.monotonic() < end) {
    const mirrors = (await engine.findInfo())?.mirrors
    if (mirrors?.length === expected.length && expected.every((url, at) => isSameUrl(url, mirrors[at]!))) return
    await clock.sleep(pollMs)
  }
  throw new MirrorError(`dockerd was reloaded, but its mirrors still differ from those in ${daemonJson}.`, {
    hints: ['journalctl -u docker -n 20   (shows the reason)', "docker info --format '{{.RegistryConfig.Mirrors}}'"],
  })
}
