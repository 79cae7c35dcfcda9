import { absentNetwork, type MirrorHere, silentEngine } from '../../admin/find-mirror.ts'
import { adminHere } from '../../admin/status.ts'
import type { Unserved } from '../../clients/address.ts'
import { MirrorError } from '../../lib/errors.ts'

/**
 * Why the running mirror, a plain process, does not serve a network, by its own words; undefined where it does not say, or
 * serves all that it shall.
 */
export async function unservedNetworks(
  here: MirrorHere,
  networks: readonly string[],
  kindNetwork: string,
): Promise<((network: string) => Unserved | undefined) | undefined> {
  const { endpoints, runtime } = here.running
  if (runtime !== 'process' || networks.every((name) => endpoints.networks[name] !== undefined)) return undefined
  const reports = await reportsOf(here)
  if (reports === undefined) return undefined
  // Where no engine has answered so far, the mirror has nothing to say of any network.
  const isSilent = Object.values(reports).every(({ reason }) => reason === silentEngine)
  return (network) => {
    const { reason } = reports[network] ?? {}
    if (isSilent)
      return {
        why: 'and no Docker engine answers the mirror, so it has no address there',
        hints: ['docker info   (says whether Docker runs; start it, then run this again)'],
      }
    if (reason === undefined) return undefined
    if (reason !== absentNetwork)
      return { why: `and the mirror cannot listen there: ${reason.replace(/\.$/, '')}`, hints: ['mirror logs'] }
    const make = network === kindNetwork ? 'mirror configure kind' : `docker network create ${network}`
    return { why: 'which does not exist yet', hints: [`${make}   (makes it; then run this again)`] }
  }
}

async function reportsOf(here: MirrorHere) {
  try {
    return (await adminHere(here).status()).networks
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}
