import { stat } from 'node:fs/promises'
import { isIP } from 'node:net'
import { ifVisible } from '../lib/fs.ts'
import { ownInterfaces } from '../lib/network.ts'
import { readOwnedFile } from '../lib/ownership.ts'
import { containerName } from '../runtime/container-spec.ts'
import type { Endpoints, MirrorState } from '../runtime/runtime.ts'
import { isRunning, parseState } from '../admin/state.ts'

/**
 * The running mirror that another user's state file tells of. Root believes no more of it than it has to: the process has to be
 * that user's, the engine of a container one of this machine, and every address one of this machine.
 */
export async function findRunningOf(stateFile: string, uid: number): Promise<MirrorState | undefined> {
  const text = await readOwnedFile(stateFile, uid)
  const state = text === undefined ? undefined : parseState(text)
  if (state === undefined) return undefined
  const { pid, container } = state
  if (container?.elsewhere || (container?.engine && container.engine.kind !== 'socket')) return undefined
  if (container === undefined && (await isOfAnother(pid, uid))) return undefined
  const checked = { ...state, endpoints: ownEndpoints(state.endpoints) }
  return (await isRunning(checked)) ? checked : undefined
}

async function isOfAnother(pid: number, uid: number): Promise<boolean> {
  if (!Number.isSafeInteger(pid) || pid <= 0) return true
  const process = await ifVisible(stat(`/proc/${pid}`))
  return process !== undefined && process.uid !== uid
}

function ownEndpoints({ cache, registry, admin, networks }: Endpoints): Endpoints {
  const own = new Set(ownInterfaces().map(({ address }) => address))
  const isOwn = (host: string) =>
    host === 'localhost' ||
    (isIP(host) !== 0 && (host.startsWith('127.') || ['::1', '0.0.0.0', '::'].includes(host) || own.has(host)))
  const isHere = (url: string) => isOwn(hostOf(url))
  return {
    cache: cache.filter(isHere),
    registry: registry.filter(isHere),
    admin: admin.filter(isHere),
    // A mirror in a container is called by name in its networks.
    networks: Object.fromEntries(
      Object.entries(networks).filter(([, url]) => isHere(url) || hostOf(url) === containerName),
    ),
  }
}

/** Empty for what is no plain URL of a mirror. */
function hostOf(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol)) return ''
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '' || url.username !== '') return ''
  return url.hostname.replace(/^\[|\]$/g, '')
}
