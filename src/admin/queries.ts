import { OciError } from '../oci/errors.ts'
import { type HistoryRange, historyRanges } from '../stats/history.ts'
import { maxRecentRequests } from '../stats/requests.ts'
import type { AdminApi } from './api.ts'

/** Holds the operations that only read, and whose requests have parameters or a list as their answer. */
type Queries = Pick<AdminApi, 'clients' | 'getHistory' | 'listDownloads' | 'listRequests' | 'trace'>

const defaultLimit = 100

/** Answers a GET below `/api/` with a value for JSON; undefined for any other path. Throws an OciError 400 for a bad parameter. */
export async function answerQuery(api: Queries, url: string): Promise<object | undefined> {
  const [path, query] = splitUrl(url)
  switch (path) {
    case '/api/trace': {
      const [image, platform] = [query.get('image') ?? '', query.get('platform') ?? '']
      return api.trace({ image, ...(platform !== '' && { platform }) })
    }
    case '/api/downloads':
      return api.listDownloads()
    case '/api/history':
      return api.getHistory(parseRange(query.get('range')))
    case '/api/clients':
      return api.clients.list()
    case '/api/clients/configured': {
      const clients = await api.clients.listConfigured()
      return clients === undefined ? {} : { clients }
    }
    case '/api/requests': {
      const image = query.get('image') ?? ''
      return api.listRequests({ ...(image !== '' && { image }), limit: parseLimit(query.get('limit')) })
    }
    default:
      return undefined
  }
}

function splitUrl(url: string): [path: string, query: URLSearchParams] {
  const mark = url.indexOf('?')
  return mark === -1 ? [url, new URLSearchParams()] : [url.slice(0, mark), new URLSearchParams(url.slice(mark + 1))]
}

function parseRange(text: string | null): HistoryRange {
  const range = historyRanges.find((known) => known === text)
  if (range) return range
  throw new OciError('UNKNOWN', 400, `"range" must be one of ${historyRanges.join(', ')}.`)
}

function parseLimit(text: string | null): number {
  if (text === null) return defaultLimit
  const limit = /^\d{1,9}$/.test(text) ? Number(text) : 0
  if (limit === 0) throw new OciError('UNKNOWN', 400, `"limit" must be a number from 1 to ${maxRecentRequests}.`)
  return Math.min(limit, maxRecentRequests)
}
