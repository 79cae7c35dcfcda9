import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Logger } from '../../lib/logger.ts'
import { logFailure, runEvery } from '../../lib/time.ts'
import { OciError } from '../../oci/errors.ts'
import type { RequestListener } from '../../stats/requests.ts'
import type { DownloadReport, LiveEvents, LiveSummary, RequestReport } from '../activity.ts'
import type { ReadPermit } from './sessions.ts'

export type Changed = LiveEvents['changed']['what'][number]

/** Provides what the events tell. Nothing of it is used while nobody listens. */
export interface LiveSources {
  /** Calls `onRequest` with each request that is answered from now on. Returns the function that ends this. */
  subscribe(onRequest: RequestListener): () => void
  /** Lists the downloads that are under way. */
  listDownloads(): readonly DownloadReport[]
  summarize(): Promise<LiveSummary>
}

interface EventFeedOptions {
  /** May still be opening; the first listener waits for it. */
  readonly sources: Promise<LiveSources>
  readonly logger: Logger
  /** Limits the pages that listen; at most 20. */
  readonly maxListeners?: number
  /** Sets the interval between two batches, ms. */
  readonly batchMs?: number
}

const defaultBatchMs = 250
const summaryMs = 2000
/** Sets the interval of a line without meaning, by which proxies and clients see that the connection works, ms. */
const keepAliveMs = 15_000
const maxListenersEver = 20
/** Limits the requests in a batch. */
const maxRequests = 100
const maxDownloads = 200
/** Limits the bytes that wait for a listener; one that reads more slowly is disconnected, and its page connects again. */
const maxWaitingBytes = 256 * 1024
/** Sets the time after which a page connects again, ms. */
const retryMs = 2000

/**
 * Sends Server-Sent Events to the pages that listen (`LiveEvents`). Each event is serialized once for all of them.
 * https://html.spec.whatwg.org/multipage/server-sent-events.html
 */
export class EventFeed {
  readonly #options: EventFeedOptions
  /** Maps the responses to what allows their pages to read. */
  readonly #listeners = new Map<ServerResponse, ReadPermit>()
  readonly #changed = new Set<Changed>()
  #requests: RequestReport[] = []
  #omitted = 0
  #lastDownloads = '[]'
  #summarizing: Promise<void> | undefined
  #stop: (() => void) | undefined
  #isClosed = false

  constructor(options: EventFeedOptions) {
    this.#options = options
  }

  /**
   * Answers a request with events until the client leaves, or may not read any more. Throws an OciError 503 when too many listen, or
   * the mirror ends.
   */
  async open(request: IncomingMessage, response: ServerResponse, isPermitted: ReadPermit): Promise<void> {
    const sources = await this.#options.sources
    const limit = Math.min(this.#options.maxListeners ?? Infinity, maxListenersEver)
    if (this.#isClosed || this.#listeners.size >= limit) {
      const message = this.#isClosed ? 'The mirror is ending.' : `${limit} pages listen already.`
      throw new OciError('TOOMANYREQUESTS', 503, message, { 'retry-after': '5' })
    }
    // Keeps nginx from collecting the events.
    const headers = { 'content-type': 'text/event-stream', 'cache-control': 'no-store', 'x-accel-buffering': 'no' }
    response.writeHead(200, headers)
    if (request.method === 'HEAD' || response.destroyed) return void response.end()
    this.#listeners.set(response, isPermitted)
    response.once('close', () => this.#leave(response))
    this.#start(sources)
    response.write(`retry: ${retryMs}\n\n`)
    response.write(formatEvent('downloads', formatDownloads(sources)))
    // The next batch tells the list to all, because this page may know another one than they do.
    this.#lastDownloads = ''
    await this.#sendSummary(sources)
  }

  /** Tells the pages that something has changed, with the next summary. */
  announce(what: Changed): void {
    if (this.#listeners.size > 0) this.#changed.add(what)
  }

  /** Ends all connections, so that the server can end at once; their pages connect again. */
  close(): void {
    this.#isClosed = true
    for (const response of this.#listeners.keys()) this.#dismiss(response)
  }

  #dismiss(response: ServerResponse): void {
    this.#leave(response)
    // Waits for no client that does not read.
    if (response.writableLength > 0) response.destroy()
    else response.end()
  }

  #start(sources: LiveSources): void {
    if (this.#stop) return
    const { logger, batchMs = defaultBatchMs } = this.#options
    const onFailure = logFailure(logger, 'could not send events')
    const ends = [
      sources.subscribe((request, toReport) => this.#record(request, toReport)),
      runEvery(batchMs, () => this.#sendBatch(sources), onFailure),
      runEvery(summaryMs, () => this.#sendSummary(sources), onFailure),
      runEvery(keepAliveMs, () => this.#send(Buffer.from(': the mirror runs\n\n')), onFailure),
    ]
    this.#stop = () => ends.forEach((end) => end())
  }

  #leave(response: ServerResponse): void {
    this.#listeners.delete(response)
    if (this.#listeners.size > 0) return
    this.#stop?.()
    this.#stop = undefined
    this.#requests = []
    this.#omitted = 0
    this.#changed.clear()
  }

  #record({ listener, method, cache }: Parameters<RequestListener>[0], toReport: () => RequestReport): void {
    if (listener === 'registry' && method !== 'GET' && method !== 'HEAD') this.#changed.add('registry')
    if (cache === 'miss') this.#changed.add('images')
    if (this.#requests.length < maxRequests) this.#requests.push(toReport())
    else this.#omitted += 1
  }

  #sendBatch(sources: LiveSources): void {
    if (this.#requests.length > 0) {
      const batch: LiveEvents['requests'] = { requests: this.#requests, omitted: this.#omitted }
      this.#send(formatEvent('requests', JSON.stringify(batch)))
      this.#requests = []
      this.#omitted = 0
    }
    const downloads = formatDownloads(sources)
    if (downloads === this.#lastDownloads) return
    this.#lastDownloads = downloads
    this.#send(formatEvent('downloads', downloads))
  }

  /** Sends one summary at a time, also when many pages begin to listen. */
  #sendSummary(sources: LiveSources): Promise<void> {
    this.#summarizing ??= this.#summarize(sources).finally(() => (this.#summarizing = undefined))
    return this.#summarizing
  }

  async #summarize(sources: LiveSources): Promise<void> {
    const summary = await sources.summarize()
    this.#send(formatEvent('summary', JSON.stringify(summary)))
    if (this.#changed.size === 0) return
    const changed: LiveEvents['changed'] = { what: [...this.#changed] }
    this.#changed.clear()
    this.#send(formatEvent('changed', JSON.stringify(changed)))
  }

  #send(bytes: Buffer): void {
    for (const [response, isPermitted] of this.#listeners)
      if (!isPermitted()) this.#dismiss(response)
      else if (response.writableLength > maxWaitingBytes) response.destroy()
      else response.write(bytes)
  }
}

function formatDownloads(sources: LiveSources): string {
  const downloads: LiveEvents['downloads'] = sources.listDownloads().slice(0, maxDownloads)
  return JSON.stringify(downloads)
}

function formatEvent(name: keyof LiveEvents, json: string): Buffer {
  return Buffer.from(`event: ${name}\ndata: ${json}\n\n`)
}
