import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { createAdminClient, type AdminClient, type AdminTunnel } from '../admin/client.ts'
import { hostOf } from '../docker/endpoint.ts'
import type { ContainerPlace, MirrorState } from '../runtime/runtime.ts'
import type { StatusReport } from '../admin/api.ts'
import { findMirrorHere, type MirrorHere } from './find-mirror-here.ts'

/** What the running mirror says about itself; undefined when none runs. */
export async function mirrorStatus(surroundings: Surroundings): Promise<StatusReport | undefined> {
  const here = await findMirrorHere(surroundings)
  if (here === undefined) return undefined
  const report = completed(await adminHere(here).status())
  const engine = engineElsewhere(here.running)
  return { ...report, ...(engine !== undefined && { engine }), ...(here.user && { user: here.user.name }) }
}

/** The admin client of a mirror that was found. */
export function adminHere({ running, paths, user }: MirrorHere): AdminClient {
  return adminOf(running, paths, user?.uid)
}

/** A mirror of an older version, which a newer command may ask, does not say everything. */
function completed(report: Partial<Pick<StatusReport, 'networks' | 'refusedRegistries'>> & StatusReport): StatusReport {
  const { cache, storage } = report as {
    cache: Partial<StatusReport['cache']>
    storage: Partial<StatusReport['storage']>
  }
  return {
    ...report,
    networks: report.networks ?? {},
    refusedRegistries: report.refusedRegistries ?? {},
    cache: { ...report.cache, pulls: cache.pulls ?? 0 },
    storage: { ...report.storage, minFree: storage.minFree ?? 0 },
  }
}

/** The Docker engine of another machine whose addresses the mirror's are: `ssh://me@there`; undefined for this machine's. */
export function engineElsewhere({ container }: Pick<MirrorState, 'container'>): string | undefined {
  return container?.elsewhere && container.engine && hostOf(container.engine)
}

/** The admin client of a running mirror; `owner`: the user whose mirror it is, where that is not ours. */
export function adminOf(running: MirrorState, paths: MirrorPaths, owner?: number): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(`The mirror (pid ${running.pid}) has no admin address.`, {
      exit: exitCode.missing,
      hints: ['mirror down && mirror up'],
    })
  const tunnel = running.container && tunnelTo(running.container)
  return createAdminClient({ url, tokenFile: paths.tokenFile, tokenOwner: owner, timeoutMs: 10_000, tunnel })
}

function tunnelTo({ id, engine, elsewhere }: ContainerPlace): AdminTunnel | undefined {
  if (engine === undefined || elsewhere === undefined) return undefined
  return {
    to: hostOf(engine),
    async connect() {
      // What it takes to speak to an engine is loaded by those who have to.
      const { openContainerEngine } = await import('../docker/dockerode-engine.ts')
      const { openTunnel } = await import('../docker/connection.ts')
      return openTunnel(await openContainerEngine(engine), id, elsewhere.adminPort)
    },
  }
}
