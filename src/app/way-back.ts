import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { settingVariables } from '../config/load.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import type { Clock } from '../lib/time.ts'
import type { MirrorState, ServedConfig } from '../admin/state.ts'
import { containerWayBack } from './container/container-way-back.ts'
import { startProcess } from './start-process.ts'
import { stopMirror } from '../daemon/stop.ts'

/** How to have the mirror again that runs now, should its successor not start. */
export interface WayBack {
  /** Ends it, for only one of them can have the store and the ports. */
  leave(): Promise<void>
  /** It runs again, as it was. Throws a MirrorError, or a DockerError, when it does not. */
  goBack(): Promise<void>
  /** Its successor is up: what is left of it goes. */
  forget(): Promise<void>
}

export interface WayBackRequest {
  readonly paths: MirrorPaths
  readonly surroundings: Surroundings
  readonly clock: Clock
  /** bin/run.js */
  readonly program: string
}

export async function wayBack(running: MirrorState, request: WayBackRequest): Promise<WayBack> {
  const { container, served } = running
  if (container !== undefined) {
    return containerWayBack(running, container, request)
  }
  return {
    leave: async () => void (await stopMirror(request)),
    goBack: () => (served === undefined ? start(request, request.surroundings.env) : serveAgain(served, request)),
    forget: () => Promise.resolve(),
  }
}

/** With its own configuration, whatever mirror.yaml, the flags and the variables say by now. */
async function serveAgain({ config, dataDir }: ServedConfig, request: WayBackRequest): Promise<void> {
  const before = join(request.paths.stateDir, 'before.yaml')
  const settings = new Set(settingVariables())
  const others = Object.entries(request.surroundings.env).filter(([name]) => !settings.has(name))
  await writeFileAtomic(before, `${JSON.stringify(config)}\n`)
  try {
    await start(request, { ...Object.fromEntries(others), MIRROR_CONFIG: before, MIRROR_DATA: dataDir })
  } finally {
    await rm(before, { force: true })
  }
}

async function start({ program, paths }: WayBackRequest, env: Surroundings['env']): Promise<void> {
  // What has interrupted its successor does not interrupt this.
  await startProcess({ program, paths, env, signal: new AbortController().signal })
}
