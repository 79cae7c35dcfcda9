import { rm } from 'node:fs/promises'
import { parseEndpoint } from '../docker/endpoint.ts'
import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import { isObject, parseObject } from '../lib/json.ts'
import { isSameProcess } from '../lib/process.ts'
import { isContainerUp } from '../runtime/container-life.ts'
import type { ContainerPlace, Endpoints, MirrorState, ServedConfig } from '../runtime/runtime.ts'

/** What a mirror wrote about itself; a file that is damaged counts as absent. */
export async function readState(stateFile: string): Promise<MirrorState | undefined> {
  const text = await readText(stateFile)
  return text === undefined ? undefined : parseState(text)
}

/** Whether the file says exactly this. */
export async function isStateWritten(stateFile: string, state: MirrorState): Promise<boolean> {
  return (await readText(stateFile)) === renderState(state)
}

async function readText(stateFile: string): Promise<string | undefined> {
  try {
    return await readSmallFile(stateFile)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EFBIG'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}

/** The state of a mirror that really runs. */
export async function findRunning(stateFile: string, isUp = isContainerUp): Promise<MirrorState | undefined> {
  const state = await readState(stateFile)
  return state !== undefined && (await isRunning(state, isUp)) ? state : undefined
}

/** Whether the mirror that has written this still runs. */
export async function isRunning(
  { container, endpoints, pid, processIdentity }: MirrorState,
  isUp = isContainerUp,
): Promise<boolean> {
  return container ? isUp(container, endpoints) : isSameProcess(pid, processIdentity)
}

export async function writeState(stateFile: string, state: MirrorState): Promise<void> {
  await writeFileAtomic(stateFile, renderState(state))
}

function renderState(state: MirrorState): string {
  return `${JSON.stringify(state, null, 2)}\n`
}

/** Removes the file if it is still the one of this process; a successor's stays. */
export async function removeState(stateFile: string, pid: number): Promise<void> {
  const state = await readState(stateFile)
  if (state === undefined || state.pid === pid) await rm(stateFile, { force: true })
}

/** What the text of a state file says; undefined for one that is damaged. */
export function parseState(text: string): MirrorState | undefined {
  const value = parseObject(text)
  if (!value || !isObject(value['endpoints']) || !isObject(value['configHashes'])) return undefined
  const { pid, processIdentity, version, runtime, startedAt, configHashes, logFile } = value
  const endpoints = parseEndpoints(value['endpoints'])
  if (typeof pid !== 'number' || typeof version !== 'string' || typeof startedAt !== 'string') return undefined
  if (runtime !== 'process' && runtime !== 'container') return undefined
  return {
    pid,
    processIdentity: typeof processIdentity === 'string' ? processIdentity : undefined,
    version,
    runtime,
    startedAt,
    configHashes: stringsOf(configHashes),
    endpoints,
    logFile: typeof logFile === 'string' ? logFile : undefined,
    served: isObject(value['served']) ? parseServed(value['served']) : undefined,
    container: isObject(value['container']) ? parseContainer(value['container']) : undefined,
  }
}

function parseServed({ config, dataDir }: Record<string, unknown>): ServedConfig | undefined {
  return isObject(config) && typeof dataDir === 'string' ? { config, dataDir } : undefined
}

function parseContainer({
  id,
  name,
  instance,
  volume,
  credentials,
  handedOverAt,
  engine,
  elsewhere,
}: Record<string, unknown>): ContainerPlace {
  return {
    id: String(id),
    name: String(name),
    instance: typeof instance === 'string' ? instance : undefined,
    volume: typeof volume === 'string' ? volume : undefined,
    credentials: textsOf(credentials),
    handedOverAt: String(handedOverAt),
    ...(isObject(engine) && { engine: parseEndpoint(engine) }),
    ...(isObject(elsewhere) && { elsewhere: { adminPort: Number(elsewhere['adminPort']) } }),
  }
}

function parseEndpoints(value: Record<string, unknown>): Endpoints {
  return {
    cache: textsOf(value['cache']),
    registry: textsOf(value['registry']),
    admin: textsOf(value['admin']),
    networks: stringsOf(value['networks']),
  }
}

function textsOf(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((text) => typeof text === 'string') : []
}

function stringsOf(value: unknown): Record<string, string> {
  if (!isObject(value)) return {}
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  )
}
