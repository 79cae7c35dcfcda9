import type { ConfiguredClient } from '../../clients/configured.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ClientPlace, Machine } from '../../clients/types.ts'
import { placeOf, recordsOf } from './undo-client.ts'

/** Where a client is configured, and can be seen at work or not. */
export interface ConfiguredPlaces {
  readonly pulling: readonly { readonly record: ConfiguredClient; readonly place: ClientPlace }[]
  /** Those whose clients cannot be made to pull from here. */
  readonly silent: readonly ConfiguredClient[]
}

/** What there is to check of all that is configured. Throws MirrorError (checkFailed) when it is nothing. */
export async function configuredPlaces(
  machine: Machine,
  wanted: Parameters<typeof recordsOf>[1],
): Promise<ConfiguredPlaces> {
  const records = (await recordsOf(machine, wanted)).toReversed().filter(({ undone }) => !undone)
  const places = await Promise.all(records.map(async (record) => ({ record, place: await placeOf(machine, record) })))
  const pulling = places.filter(({ place }) => place.pull !== undefined)
  const silent = places.filter(({ place }) => place.pull === undefined).map(({ record }) => record)
  if (pulling.length > 0) return { pulling, silent }
  const found = records.length === 0 ? 'No client is configured by mirror' : 'No configured client can pull'
  throw new MirrorError(`${found} on this machine, so there is nothing to check.`, {
    exit: exitCode.checkFailed,
    hints: ['mirror configure --list', 'mirror configure CLIENT --check   (of one that you have configured yourself)'],
  })
}

/**
 * The place that is meant where several may be. To be checked is one that is configured, if the user names no other. Throws
 * MirrorError (missing) when there is none.
 */
export async function usualPlace(
  machine: Machine,
  { client, places, check, scope, cluster, file }: PlaceChoices,
): Promise<ClientPlace> {
  const [first] = places
  const isNamed = [scope, cluster, file].some((name) => name !== undefined)
  if (check && !isNamed && !machine.detached) {
    const records = await recordsOf(machine, { client, scope, cluster, file })
    const configured = records.filter(({ undone }) => !undone)
    const [last] = configured
    if (last !== undefined && !configured.some(({ place }) => place === first?.id)) {
      const recorded = await placeOf(machine, last)
      if (recorded.pull !== undefined) return recorded
    }
  }
  if (first !== undefined) return first
  throw new MirrorError(`There is no place for a configuration of ${client} here.`, { exit: exitCode.missing })
}

interface PlaceChoices {
  readonly client: string
  readonly places: readonly ClientPlace[]
  readonly check: boolean
  readonly scope?: string | undefined
  readonly cluster?: string | undefined
  readonly file?: string | undefined
}
