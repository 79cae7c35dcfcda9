import { readFile } from 'node:fs/promises'
import { isSameUrl, mirrorsIn, stripDaemonJson } from '../../clients/docker-daemon-json.ts'
import type { Clock } from '../../lib/clock.ts'
import { MirrorError, errnoOf, exitCode } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/if-visible.ts'
import { findDockerd, type DockerdProcess } from '../../runtime/dockerd-process.ts'
import type { DockerEndpoint } from '../../runtime/docker-endpoint.ts'
import { createDockerodeEngine } from '../../runtime/dockerode-engine.ts'
import type { ClientReload } from './client-adapter.ts'

const lookEveryMs = 100
const takesMs = 5000

export interface ReloadedDockerd {
  readonly endpoint: DockerEndpoint
  readonly daemonJson: string
  /** As it was found when the place was looked for. */
  readonly dockerd: DockerdProcess | undefined
  readonly isRootless: boolean
}

/** Has dockerd read its daemon.json again, which it does on SIGHUP, and sees that it has. */
export function dockerReload(
  { endpoint, daemonJson, dockerd, isRootless }: ReloadedDockerd,
  clock: Clock,
): ClientReload {
  return {
    says: `send SIGHUP to dockerd${dockerd === undefined ? '' : ` (pid ${dockerd.pid})`}`,
    async run() {
      const running = await findDockerd(endpoint)
      if (running === undefined)
        throw new MirrorError('No dockerd was found that could be told to read its configuration again.', {
          exit: exitCode.missing,
          hints: [reloadCommand(undefined, isRootless)],
        })
      hangUp(running, isRootless)
      await untilTaken(endpoint, daemonJson, clock)
    },
    interim: (mirror, files) => stripDaemonJson(mirror, daemonJson, files, 'keep'),
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
    throw new MirrorError(`dockerd (pid ${dockerd.pid}) takes no signals from you.`, {
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
  throw new MirrorError(`dockerd was told to read ${daemonJson} again, and still has other mirrors.`, {
    hints: ['journalctl -u docker -n 20   (it says there why)', "docker info --format '{{.RegistryConfig.Mirrors}}'"],
  })
}
