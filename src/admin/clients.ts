import { isObject } from '../lib/json.ts'
import { OciError } from '../oci/errors.ts'
import type { ClientReport } from '../stats/clients.ts'
import type { ConfiguredClient, ConfiguredClientReport } from '../stats/configured-clients.ts'

/** Describes the operations on the programs that use the mirror, and on the clients that mirror configured for it. */
export interface ClientsApi {
  /** Lists the programs that used the mirror, the most recent one first. */
  list(): Promise<ClientReport[]>
  /** Lists the clients of this machine that mirror configured; undefined while they are not known. */
  listConfigured(): Promise<ConfiguredClientReport[] | undefined>
  /** Tells a mirror that cannot see the machine, as one in a container, which clients are configured. Others ignore it. */
  storeConfigured(clients: readonly ConfiguredClient[]): Promise<void>
}

const maxClients = 200
/** Limits the characters of a text. */
const maxTextLength = 300

/** Checks the shape of a list of configured clients. Throws an OciError 400. */
export function parseConfiguredClients(value: unknown): ConfiguredClient[] {
  if (!Array.isArray(value) || value.length > maxClients) throw createShapeError()
  return (value as unknown[]).map((entry) => {
    const { client, title, since } = isObject(entry) ? entry : {}
    if (!isText(client) || !isText(title) || !isText(since) || Number.isNaN(Date.parse(since))) throw createShapeError()
    return { client, title, since: new Date(since).toISOString() }
  })
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value.length <= maxTextLength
}

function createShapeError(): OciError {
  return new OciError('UNKNOWN', 400, 'The body needs "clients", a list of configured clients.')
}
