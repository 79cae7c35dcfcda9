import { join } from 'node:path'
import type { AdminApi } from '../admin/api.ts'
import { createAddressCheck, parseUserNames } from '../admin/names.ts'
import type { Config } from '../config/config.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { type Clock, createWriteBehind, logFailure, type OnFailure, runLater } from '../lib/time.ts'
import { SeenClients } from '../stats/clients.ts'
import { type ConfiguredClient, describeConfigured, findConfiguredFor } from '../stats/configured-clients.ts'
import { TrafficHistory } from '../stats/history.ts'
import { RecentRequests } from '../stats/requests.ts'
import { ImageSavings } from '../stats/savings.ts'
import { Stats } from '../stats/stats.ts'

const saveMs = 10_000
const minuteMs = 60_000

/** Holds what the mirror remembers of its traffic. */
export type Activity = Awaited<ReturnType<typeof openActivity>>

/**
 * Reads what earlier starts have recorded in the state folder, and saves it again and again until it is closed. The history is written at
 * the end of each minute.
 */
export async function openActivity({ stateDir, clock, logger }: { stateDir: string; clock: Clock; logger: Logger }) {
  const statsFile = join(stateDir, 'stats.json')
  const clientsFile = join(stateDir, 'clients.json')
  const savingsFile = join(stateDir, 'savings.json')
  const stats = new Stats(clock.wall())
  await stats.load(statsFile)
  const clients = new SeenClients(clock)
  await clients.load(clientsFile)
  const savings = new ImageSavings()
  await savings.load(savingsFile)
  const history = new TrafficHistory({ path: join(stateDir, 'history.jsonl'), totals: stats.totals, clock })
  await history.load()
  const save = (write: () => Promise<void>, what: string, everyMs = saveMs) =>
    createWriteBehind({ write, logger, failure: `could not save ${what}`, everyMs })
  const savingStats = save(() => stats.save(statsFile), 'the statistics')
  const savingClients = save(() => clients.save(clientsFile), 'the clients')
  const savingSavings = save(() => savings.save(savingsFile), 'what images saved', minuteMs)
  const savingHistory = save(() => history.save(), 'the history of the traffic', minuteMs)
  const stopMinutes = atEachMinute(clock, savingHistory.update, logFailure(logger, 'could not end a minute'))
  return {
    stats,
    history,
    clients,
    savings,
    recent: new RecentRequests(clock),
    /** Saves a last time. */
    async close(): Promise<void> {
      stopMinutes()
      history.end()
      await Promise.all([savingStats, savingClients, savingSavings, savingHistory].map((saving) => saving.close()))
    },
  }
}

/** Runs a task when the clock begins another minute. Returns the function that stops it. */
function atEachMinute(clock: Pick<Clock, 'wall'>, task: () => void, onFailure: OnFailure): () => void {
  const start = () =>
    runLater(
      minuteMs - (clock.wall() % minuteMs),
      () => {
        cancel = start()
        task()
      },
      onFailure,
    )
  let cancel = start()
  return () => cancel()
}

interface ActivityContext {
  readonly config: Pick<Config, 'allowedHosts' | 'defaultUpstream'>
  /** Holds the addresses of the cache and the registry. */
  readonly urls: readonly string[]
  /** Lists the clients of this machine that mirror configured; undefined where this process cannot know them. */
  readonly listConfigured: (() => Promise<readonly ConfiguredClient[]>) | undefined
  /** Creates the check whether an address is of this machine, or of a container on it. */
  readonly createMachineCheck: () => (address: string) => boolean
}

/** Implements the operations of the admin API that read the recorded traffic. */
export function createActivityApi(
  { history, clients, recent }: Activity,
  { config, urls, listConfigured, createMachineCheck }: ActivityContext,
): Pick<AdminApi, 'getHistory' | 'clients' | 'listRequests'> {
  const isOwnAddress = createAddressCheck(urls, config.allowedHosts)
  let told: readonly ConfiguredClient[] | undefined
  const findConfigured = async () => {
    try {
      return listConfigured ? await listConfigured() : told
    } catch (error) {
      // Shows the programs although a record of the clients is damaged; `mirror configure --list` names it.
      if (error instanceof MirrorError || getErrno(error) !== undefined) return undefined
      throw error
    }
  }
  const listOfMachine = () => {
    const isOfMachine = createMachineCheck()
    return clients.list().filter(({ address }) => isOfMachine(address))
  }
  return {
    getHistory: async (range) => history.report(range),
    clients: {
      async list() {
        const configured = await findConfigured()
        if (configured === undefined) return clients.list()
        const isOfMachine = createMachineCheck()
        return clients.list().map((client) => {
          return isOfMachine(client.address) ? { ...client, configured: findConfiguredFor(client, configured) } : client
        })
      },
      async listConfigured() {
        const configured = await findConfigured()
        return configured && describeConfigured(configured, listOfMachine())
      },
      async storeConfigured(list) {
        told = list
      },
    },
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
