import { batch, effect, type Signal } from '@preact/signals'
import type { LiveEvents, RequestReport } from '../../src/admin/activity.ts'
import { getJson, openSession, watchSession } from './session.ts'
import {
  addRequests,
  clients,
  configured,
  connection,
  doctor,
  downloads,
  history,
  images,
  now,
  omitted,
  pushed,
  range,
  status,
  summary,
  type View,
  view,
} from './state.ts'

/** Limits how often a list is read because it has changed, ms. */
const throttleMs = 1000
/** Sets how often lists are read without a reason, ms. */
const pollMs = 30_000
/** Limits the silence of the server, which sends a summary every two seconds, ms. */
const silenceMs = 12_000
/** Counts the attempts to connect that follow each other quickly. */
const quickRetries = 60
/** Sets how long a hidden page stays connected, ms. */
const hiddenMs = 60_000

type List = 'status' | 'images' | 'pushed' | 'clients' | 'configured' | 'doctor' | 'history' | 'requests'

const lists: Readonly<Record<View, readonly List[]>> = {
  overview: ['status', 'history', 'doctor'],
  images: ['status', 'images'],
  pushed: ['status', 'pushed'],
  clients: ['status', 'clients', 'configured'],
  log: ['status'],
  doctor: ['status', 'doctor'],
}

const readInto = async <T>(target: Signal<T | undefined>, path: string) => {
  target.value = await getJson<T>(path)
}

const readers: Readonly<Record<List, () => Promise<void>>> = {
  status: () => readInto(status, '/api/status'),
  images: () => readInto(images, '/api/cache'),
  pushed: () => readInto(pushed, '/api/registry'),
  clients: () => readInto(clients, '/api/clients'),
  configured: () => readInto(configured, '/api/clients/configured'),
  doctor: () => readInto(doctor, '/api/doctor'),
  history: () => readInto(history, `/api/history?range=${range.value}`),
  requests: async () => addRequests(await getJson<RequestReport[]>('/api/requests?limit=200')),
}

let source: EventSource | undefined
let heardAt = 0
let retryTimer: ReturnType<typeof setTimeout> | undefined
let hiddenTimer: ReturnType<typeof setTimeout> | undefined
let retries = 0
/** Maps the lists that were read just now to whether they have changed since. */
const waiting = new Map<List, boolean>()

/** Keeps the state up to date while the page is visible. */
export function startLive(): void {
  connect()
  watchSession(restart)
  effect(() => readAll(lists[view.value]))
  effect(() => {
    if (range.value) read('history')
  })
  effect(() => {
    if (connection.value === 'locked') disconnect()
  })
  setInterval(() => {
    if (!document.hidden && connection.value !== 'locked') readAll(lists[view.peek()])
  }, pollMs)
  setInterval(() => {
    if (document.hidden) return
    now.value = Date.now()
    if (source && Date.now() - heardAt > silenceMs) lose()
  }, 2000)
  document.addEventListener('visibilitychange', () => {
    clearTimeout(hiddenTimer)
    if (document.hidden) hiddenTimer = setTimeout(disconnect, hiddenMs)
    else {
      now.value = Date.now()
      if (!source) connect()
      readAll(lists[view.peek()])
    }
  })
}

/** Connects at once, also when the next attempt is due later. */
export function connect(): void {
  disconnect()
  heardAt = Date.now()
  const opened = new EventSource('/api/events')
  source = opened
  const on = <K extends keyof LiveEvents>(name: K, handle: (value: LiveEvents[K]) => void) =>
    opened.addEventListener(name, ({ data }: MessageEvent<string>) => {
      heardAt = Date.now()
      handle(JSON.parse(data) as LiveEvents[K])
    })
  on('summary', (value) =>
    batch(() => {
      summary.value = value
      now.value = Date.now()
      if (connection.value !== 'live') welcome()
    }),
  )
  on('downloads', (value) => (downloads.value = value))
  on('requests', (value) =>
    batch(() => {
      addRequests(value.requests)
      omitted.value += value.omitted
    }),
  )
  on('changed', ({ what }) => {
    if (what.includes('images')) read('images', 'clients', 'status')
    if (what.includes('registry')) read('pushed', 'status')
    if (what.includes('clients')) read('clients', 'configured')
    if (what.includes('doctor')) read('doctor')
    if (what.includes('offline')) read('status')
  })
  opened.addEventListener('error', () => void (opened.readyState === EventSource.CLOSED ? explain() : lose()))
}

/** Connects and reads again, because the session of this browser has begun or ended. */
export function restart(): void {
  connect()
  refresh()
}

/** Finds out why the mirror has refused the events: it may be that this browser has no session. */
async function explain(): Promise<void> {
  disconnect()
  await readers.status().catch(() => {})
  if (!source && connection.value !== 'locked') lose()
}

function welcome(): void {
  const isBack = connection.value === 'lost'
  connection.value = 'live'
  retries = 0
  read('requests')
  if (!isBack) return
  readAll(lists[view.peek()])
  void openSession()
}

function disconnect(): void {
  clearTimeout(retryTimer)
  source?.close()
  source = undefined
}

/** Drops the connection and tries again: each second at first, because a mirror that restarts is back soon, later each 15 s. */
function lose(): void {
  disconnect()
  connection.value = 'lost'
  downloads.value = []
  if (!document.hidden) retryTimer = setTimeout(connect, retries++ < quickRetries ? 1000 : 15_000)
}

/** Reads lists soon, each at most once in a while, and only those that are shown. */
function read(...names: readonly List[]): void {
  for (const name of names) {
    if (name !== 'requests' && !lists[view.peek()].includes(name)) continue
    if (waiting.has(name)) {
      waiting.set(name, true)
      continue
    }
    waiting.set(name, false)
    setTimeout(() => {
      const hasChanged = waiting.get(name)
      waiting.delete(name)
      if (hasChanged) read(name)
    }, throttleMs)
    readers[name]().catch(() => {})
  }
}

function readAll(names: readonly List[]): void {
  for (const name of names) readers[name]().catch(() => {})
}

/** Reads what a change of this page has changed. */
export function refresh(): void {
  readAll(lists[view.peek()])
}
