import { readFile } from 'node:fs/promises'
import { forgetInDaemonJson, isSameUrl, mirrorsIn } from '../../clients/docker/daemon-json.ts'
import type { Clock } from '../../lib/time.ts'
import { MirrorError, errnoOf, exitCode } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { findDockerd, type DockerdProcess } from '../../runtime/dockerd-process.ts'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import type { ClientReload } from '../../clients/types.ts'

const lookEveryMs = 100
const takesMs = 5000

export interface ReloadedDockerd {
  readonly endpoint: DockerEndpoint
  readonly daemonJson: string
  /** Of Docker; undefined when nobody could tell. */
  readonly version?: string | undefined
  /** As it was found when the place was looked for. */
  readonly dockerd: DockerdProcess | undefined
  readonly isRootless: boolean
}

/** Has dockerd read its daemon.json again, which it does on SIGHUP, and sees that it has. */
export function dockerReload(
  { endpoint, daemonJson, version, dockerd, isRootless }: ReloadedDockerd,
  clock: Clock,
): ClientReload {
  return {
    question: 'Reload dockerd now (SIGHUP, no containers stop)?',
    done: `Sent SIGHUP to dockerd${dockerd === undefined ? '' : ` (pid ${dockerd.pid})`}.`,
    async run() {
      const running = await findDockerd(endpoint)
      if (running === undefined)
        throw new MirrorError('No dockerd was found that could be reloaded.', {
          exit: exitCode.missing,
          hints: [reloadCommand(undefined, isRootless)],
        })
      hangUp(running, isRootless)
      await untilTaken(endpoint, daemonJson, clock)
    },
    interim: (mirror, files) => forgetInDaemonJson(mirror, daemonJson, files, version),
  }
}

/** What a person types to the same end. */
export function reloadCommand(dockerd: DockerdProcess | undefined, isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return dockerd === undefined
    ? `${sudo}systemctl ${isRootless ? '--user ' : ''}reload docker`
    : `${sudo}kill -HUP ${dockerd.pid}`
}

function hangUp(dockerd: DockerdProcess, isRootless: boolean): void {
  try {
    process.kill(dockerd.pid, 'SIGHUP')
  } catch (cause) {
    if (errnoOf(cause) !== 'EPERM' && errnoOf(cause) !== 'ESRCH') throw cause
    throw new MirrorError(`No permission to signal dockerd (pid ${dockerd.pid}).`, {
      exit: exitCode.usage,
      hints: [reloadCommand(dockerd, isRootless)],
      cause,
    })
  }
}

/** dockerd says only in its log why it goes on with what it had. */
async function untilTaken(endpoint: DockerEndpoint, daemonJson: string, clock: Clock): Promise<void> {
  const text = await ifVisible(readFile(daemonJson, 'utf8'))
  const wanted = text === undefined ? undefined : mirrorsIn(daemonJson, text)
  if (wanted === undefined) return
  const engine = createDockerodeEngine(endpoint)
  const end = clock.monotonic() + takesMs
  while (clock.monotonic() < end) {
    const mirrors = (await engine.info())?.mirrors
    if (mirrors?.length === wanted.length && wanted.every((url, at) => isSameUrl(url, mirrors[at]!))) return
    await clock.sleep(lookEveryMs)
  }
  throw new MirrorError(`dockerd was reloaded, and still has other mirrors than ${daemonJson} names.`, {
    hints: ['journalctl -u docker -n 20   (it says there why)', "docker info --format '{{.RegistryConfig.Mirrors}}'"],
  })
}
