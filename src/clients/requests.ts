import { basename, dirname } from 'node:path'
import { toRegistryUrl } from '../oci/reference.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { findClientsOnPath, getAdapter, noOptions } from './adapters.ts'
import { readFiles } from './configure.ts'
import { listRecord } from './configured.ts'
import { getConfigureCommand, getFirstCommand, openMachineRecords, type StoredRecord } from './records.ts'
import type { StaleClient } from './stale-clients.ts'
import type { ClientName, Machine } from './types.ts'
import { getTarget } from './undo.ts'

/** Names an image by its parts. */
export interface AskedImage {
  /** Names the registry; of a pushed image, the host of this machine's registry. */
  readonly registry: string
  /** Names the repository as the registry spells it: with `library/` on Docker Hub. */
  readonly repository: string
  /** Holds the tag or digest. */
  readonly reference: string
  /** Is true for an image of the registry for pushed images. */
  readonly isPushed: boolean
}

/** Describes the first request of a client for an image, by what mirror wrote into the client's configuration. */
export interface ClientRequest {
  readonly client: ClientName
  /** Names the configured target: `system (/etc/docker)`; absent for a client that is not configured. */
  readonly target?: string
  /** `mirror`: the client asks the mirror first; `origin`: it bypasses the mirror. */
  readonly via: 'mirror' | 'origin'
  readonly url: string
  /** Holds the URL that the client asks when the mirror fails; absent for none. */
  readonly fallback?: string
  /** Explains what is not as usual, one sentence each. */
  readonly notes: readonly string[]
  /** Holds the command that leads the client to the mirror; absent where it does already, or where none can. */
  readonly fix?: string
}

/**
 * Distinguishes how clients name the registry in a request to a mirror: by `?ns=`, as the first part of the path, below `/upstream/`, or
 * not at all.
 */
type RequestForm = 'namespace' | 'path' | 'upstream' | 'none'

const forms: Record<ClientName, RequestForm> = {
  docker: 'namespace',
  buildkit: 'namespace',
  containerd: 'namespace',
  kind: 'namespace',
  k3d: 'namespace',
  k3s: 'namespace',
  minikube: 'namespace',
  podman: 'path',
  kaniko: 'upstream',
  testcontainers: 'path',
  skaffold: 'none',
  tilt: 'none',
}

/** Returns the URL of the manifest at the address of a mirror. */
export function toMirrorUrl(cache: string, form: RequestForm, image: Omit<AskedImage, 'isPushed'>): string {
  const { registry, repository, reference } = image
  const end = `${repository}/manifests/${reference}`
  switch (form) {
    case 'namespace':
      return `${cache}/v2/${end}?ns=${registry}`
    case 'path':
      // A location of podman has no colon behind its first slash.
      return `${cache}/v2/${registry.replace(':', '_')}/${end}`
    case 'upstream':
      return `${cache}/v2/upstream/${registry}/${end}`
    case 'none':
      return `${cache}/v2/${end}`
  }
}

/** Returns the URL of the manifest at the registry itself. */
export function toOriginUrl({ registry, repository, reference }: Omit<AskedImage, 'isPushed'>): string {
  return `${toRegistryUrl(registry)}/v2/${repository}/manifests/${reference}`
}

/** Describes what a client with this record asks: one request, or one for each image store of docker when both are configured. */
export function describeRequests(
  record: Pick<StoredRecord, 'client' | 'title' | 'cache' | 'registry' | 'fallback' | 'files'>,
  image: AskedImage,
  /** Lists the registries that mirror configures. */
  registries: readonly string[],
  /** Holds the command that configures the client again. */
  command?: string,
): ClientRequest[] {
  const { client, title: target } = record
  if (image.isPushed) return [describePushedRequest(record, image)]
  const origin = toOriginUrl(image)
  const folders = listHostsFolders(record)
  const hasList = client === 'docker' && record.files.some(({ path }) => basename(path) === 'daemon.json')
  const found: ClientRequest[] = []
  const withMirror = (form: RequestForm, notes: string[]): ClientRequest => ({
    client,
    target,
    via: 'mirror',
    url: toMirrorUrl(record.cache, form, image),
    ...(record.fallback && { fallback: origin }),
    notes,
  })
  const bypass = (why: string): ClientRequest => ({ client, target, via: 'origin', url: origin, notes: [why] })
  if (hasList) {
    const notes = folders.length > 0 ? ['With the classic image store.'] : []
    if (image.registry === 'docker.io') found.push(withMirror('none', notes))
    else
      found.push(
        bypass(`The list registry-mirrors of Docker is for Docker Hub only, so ${image.registry} is not mirrored.`),
      )
  }
  if (hasList && folders.length === 0) return found
  const isCovered =
    folders.length > 0
      ? folders.includes(image.registry) ||
        folders.includes(image.registry.replace(/:(\d+)$/, '_$1_')) ||
        folders.includes('_default')
      : client === 'k3s' || registries.includes(image.registry)
  const storeNote = hasList ? ['With the containerd image store.'] : []
  if (isCovered) found.push(withMirror(forms[client], storeNote))
  else {
    const isNew = command !== undefined && registries.includes(image.registry)
    found.push({ ...bypass(`Its configuration has no entry for ${image.registry}.`), ...(isNew && { fix: command }) })
  }
  return found
}

/** Lists the registries for which the record has a hosts.toml; `_default` stands for all. */
function listHostsFolders({ files }: Pick<StoredRecord, 'files'>): string[] {
  return files
    .filter(({ path, written }) => basename(path) === 'hosts.toml' && written !== undefined)
    .map(({ path }) => basename(dirname(path)))
}

/** Describes the request for a pushed image: clients ask the registry at its address, without a mirror. */
function describePushedRequest(
  { client, title: target, registry }: Pick<StoredRecord, 'client' | 'title' | 'registry'>,
  image: AskedImage,
): ClientRequest {
  const url = toMirrorUrl(registry ?? `http://${image.registry}`, 'none', image)
  return { client, target, via: 'mirror', url, notes: [] }
}

interface ClientRequestsOptions {
  readonly machine: Machine
  readonly image: AskedImage
  readonly stale: readonly StaleClient[]
  /** Lists the registries that mirror configures. */
  readonly registries: readonly string[]
  /** Limits the list to one client. */
  readonly client: string | undefined
}

/** Lists what each client of this machine asks for an image: the configured ones first, then those on the PATH that are not. */
export async function listClientRequests(options: ClientRequestsOptions): Promise<ClientRequest[]> {
  const { machine, image, stale, registries, client } = options
  const isWanted = (name: string) => client === undefined || name === client
  const records = (await openMachineRecords(machine).list()).filter(({ root, undone }) => root === undefined && !undone)
  const found: ClientRequest[] = []
  for (const record of records.filter((one) => isWanted(one.client))) {
    const listed = await listRecord(machine, record, stale)
    const notes = listed === undefined ? [] : describeFiles(listed.files, listed.stale?.mend)
    const command = await getConfigureCommand(machine, record)
    const isChanged = listed?.files.some(({ state }) => changedStates.has(state)) === true
    const mend = listed?.stale?.mend ?? (isChanged ? command : undefined)
    const asked = describeRequests(record, image, registries, command)
    for (const request of await Promise.all(asked.map((one) => followFiles(one, machine, record, image))))
      found.push({ ...request, notes: [...request.notes, ...notes], ...(mend !== undefined && { fix: mend }) })
  }
  const configured = new Set(records.map((record) => record.client))
  if (image.isPushed) return found
  const others = (await findClientsOnPath(machine)).filter((name) => isWanted(name) && !configured.has(name))
  return [...found, ...(await Promise.all(others.map((name) => describeUnconfigured(machine, name, image))))]
}

/** Corrects a request by the files as they are, where other files than those of mirror decide about it. */
async function followFiles(
  request: ClientRequest,
  machine: Machine,
  record: StoredRecord,
  image: AskedImage,
): Promise<ClientRequest> {
  const target = await getTarget(machine, record)
  if (target.findRoute === undefined || image.isPushed) return request
  try {
    const name = `${image.registry}/${image.repository}`
    const route = target.findRoute(record.cache, name, await readFiles(target.files, target.inputs))
    if (route === undefined || route.viaMirror === (request.via === 'mirror')) return request
    const { client, target: title, notes } = request
    const common = { client, ...(title !== undefined && { target: title }) }
    const [registry = '', ...path] = route.image.split('/')
    const origin = toOriginUrl({ registry, repository: path.join('/'), reference: image.reference })
    if (!route.viaMirror)
      return { ...common, via: 'origin', url: origin, notes: [...notes, `${route.where} leaves out the mirror.`] }
    const url = toMirrorUrl(record.cache, forms[client], { ...image, registry, repository: path.join('/') })
    return { ...common, via: 'mirror', url, ...(record.fallback && { fallback: origin }), notes: [] }
  } catch (error) {
    // Files that cannot be read have a note of their own.
    if (error instanceof MirrorError || getErrno(error) !== undefined) return request
    throw error
  }
}

async function describeUnconfigured(machine: Machine, client: ClientName, image: AskedImage): Promise<ClientRequest> {
  return {
    client,
    via: 'origin',
    url: toOriginUrl(image),
    notes: ['It is not configured by mirror.'],
    fix: await findFirstCommand(machine, client),
  }
}

/** Returns the command that configures the target which `mirror configure` would choose. */
async function findFirstCommand(machine: Machine, client: ClientName): Promise<string> {
  try {
    const [target] = await (await getAdapter(client)).findTargets(machine, noOptions)
    if (target) return await getFirstCommand(machine, client, target)
  } catch (error) {
    // The command explains what is wrong.
    if (!(error instanceof MirrorError)) throw error
  }
  return `mirror configure ${client}`
}

/** Lists the states of files that the command which configures the client writes again. */
const changedStates: ReadonlySet<string> = new Set(['changed since', 'gone'])

/** Describes files that are not as mirror wrote them. */
function describeFiles(
  files: readonly { readonly path: string; readonly state: string }[],
  mend: string | undefined,
): string[] {
  const notes = mend === undefined ? [] : ['Its configuration has an old address of the mirror.']
  for (const state of [...changedStates, 'unreachable']) {
    const [first, ...others] = files.filter((file) => file.state === state)
    const more = others.length === 0 ? '' : ` and ${others.length} more`
    if (first) notes.push(`${first.path}${more}: ${state}, so it may ask somewhere else.`)
  }
  return notes
}
