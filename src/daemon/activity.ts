import { join } from 'node:path'
import type { AdminApi } from '../admin/api.ts'
import { createAddressCheck, parseUserNames } from '../admin/names.ts'
import type { Config } from '../config/config.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, createWriteBehind } from '../lib/time.ts'
import { RecentRequests } from '../stats/requests.ts'
import { Stats } from '../stats/stats.ts'

const saveMs = 10_000

/** Holds what the mirror remembers of its traffic. */
export type Activity = Awaited<ReturnType<typeof openActivity>>

/** Reads what earlier starts have recorded in the state folder, and saves it again and again until it is closed. */
export async function openActivity({ stateDir, clock, logger }: { stateDir: string; clock: Clock; logger: Logger }) {
  const statsFile = join(stateDir, 'stats.json')
  const stats = new Stats(clock.wall())
  await stats.load(statsFile)
  const savingStats = createWriteBehind({
    write: () => stats.save(statsFile),
    logger,
    failure: 'could not save the statistics',
    everyMs: saveMs,
  })
  return {
    stats,
    recent: new RecentRequests(clock),
    /** Saves a last time. */
    close: () => savingStats.close(),
  }
}

/** Implements the operations of the admin API that read the recorded traffic. `urls`: the addresses of the cache and the registry. */
export function createActivityApi(
  { recent }: Activity,
  config: Pick<Config, 'allowedHosts' | 'defaultUpstream'>,
  urls: readonly string[],
): Pick<AdminApi, 'listRequests'> {
  const isOwnAddress = createAddressCheck(urls, config.allowedHosts)
  return {
    listRequests: async ({ image, limit }) => {
      if (image === undefined) return recent.list({ limit })
      // The registry has names without a registry; they are those of the cache without a default one.
      const [cached, pushed] = [config.defaultUpstream, undefined].map((defaultUpstream) => {
        const [parsed] = parseUserNames([image], { isOwnAddress, defaultUpstream, images: [] })
        return splitReference(parsed!.name)
      })
      const repositories = [cached!.repository, pushed!.repository].filter((name) => name !== '')
      return recent.list({
        ...(repositories.length > 0 && { repositories }),
        reference: cached!.reference,
        limit,
      })
    },
  }
}

/** Splits the name of an image, a repository, or a digest alone. */
function splitReference(name: string): { repository: string; reference: string | undefined } {
  const [, repository = '', digest, tag] = /^(.*?)(?:(?:^|@)(sha(?:256|512):.*)|:([^/:]*))?$/.exec(name) ?? []
  return { repository, reference: digest ?? tag }
}
