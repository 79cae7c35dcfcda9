import { effect, signal } from '@preact/signals'
import { type ComponentChildren, render } from 'preact'
import { cleanText, formatSpan } from './data/format.ts'
import { connect, restart, startLive } from './data/live.ts'
import { change, endSession, openSession } from './data/session.ts'
import {
  connection,
  downloads,
  inTrouble,
  now,
  refusal,
  secret,
  status,
  summary,
  title,
  type View,
  view,
  views,
} from './data/state.ts'
import { ask, Dialog, run } from './parts/dialog.tsx'
import { Action, Badge, Command, Toasts } from './parts/pieces.tsx'
import { Clients } from './views/clients.tsx'
import { Doctor } from './views/doctor.tsx'
import { Images, Pushed } from './views/images.tsx'
import { Log } from './views/log.tsx'
import { Overview } from './views/overview.tsx'

const pages = { overview: Overview, images: Images, pushed: Pushed, clients: Clients, log: Log, doctor: Doctor }
const themes = ['auto', 'light', 'dark']
const theme = signal(localStorage.getItem('theme') ?? 'auto')

function App() {
  const Page = pages[view.value]
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>
        Skip to content
      </a>
      <Header />
      {connection.value === 'lost' && (
        <Banner tone="bad">
          The mirror does not answer; the numbers are as of{' '}
          {summary.value ? formatSpan((now.value - Date.parse(summary.value.at)) / 1000) : '–'} ago. The page tries
          again.{' '}
          <button type="button" onClick={connect}>
            Retry now
          </button>
        </Banner>
      )}
      {refusal.value !== undefined && (
        <Banner tone="warn">
          {cleanText(refusal.value)}{' '}
          <button type="button" onClick={() => (refusal.value = undefined)}>
            Dismiss
          </button>
        </Banner>
      )}
      {summary.value?.offline && connection.value !== 'locked' && (
        <Banner tone="warn">The mirror is offline: only cached images are served.</Banner>
      )}
      <main id="main" tabIndex={-1}>
        <h1 class="hidden">{views[view.value]}</h1>
        {connection.value === 'locked' ? <Locked /> : <Page />}
      </main>
      <Footer />
      <Dialog />
      <Toasts />
    </>
  )
}

function Locked() {
  return (
    <section class="panel">
      <h2>This browser is not signed in</h2>
      <p>
        The mirror is in a container or on another machine, and shows its numbers only to a browser that is signed in.
        On the machine where you started it: <Command text="mirror dashboard" />
      </p>
    </section>
  )
}

function skip(event: Event): void {
  event.preventDefault()
  document.getElementById('main')?.focus()
}

function Banner({ tone, children }: { tone: 'bad' | 'warn'; children: ComponentChildren }) {
  return (
    <div class={`banner ${tone}`} role={tone === 'bad' ? 'alert' : 'status'}>
      <p>{children}</p>
    </div>
  )
}

function Header() {
  return (
    <header class="top">
      <p class="brand">
        <svg viewBox="0 0 16 16" aria-hidden="true">
          <rect width="16" height="16" rx="4" />
          <path d="M4 11.5v-7l3 3 1-1 1 1 3-3v7" />
        </svg>
        mirror
      </p>
      <nav aria-label="Views">
        {Object.entries(views).map(([key, label]) => (
          <a key={key} href={`#/${key}`} aria-current={view.value === key ? 'page' : undefined}>
            {label}
          </a>
        ))}
      </nav>
      <div class="state">
        <State />
        <OfflineButton />
        <ThemeButton />
      </div>
    </header>
  )
}

function State() {
  if (connection.value === 'lost') return <Badge tone="bad">disconnected</Badge>
  if (connection.value === 'locked') return <Badge tone="warn">signed out</Badge>
  if (!summary.value) return <Badge tone="quiet">connecting</Badge>
  const [first, ...others] = inTrouble.value
  if (first !== undefined)
    return <Badge tone="bad">{others.length > 0 ? `${others.length + 1} registries` : first} in trouble</Badge>
  if (downloads.value.length > 0) return <Badge tone="info">↓ {downloads.value.length}</Badge>
  return <Badge tone="good">live</Badge>
}

function OfflineButton() {
  const isOffline = summary.value?.offline ?? false
  return (
    <Action
      label={isOffline ? 'Go online' : 'Go offline'}
      onClick={() =>
        ask({
          title: isOffline ? 'Go online?' : 'Go offline?',
          text: (
            <p>
              {isOffline
                ? 'The mirror sends requests to registries again.'
                : 'The mirror sends no request to any registry, and serves what it has. Pulls of other images fail, or go to the registry without the mirror. It stays offline until you go online here, or until it restarts.'}
            </p>
          ),
          label: isOffline ? 'Go online' : 'Go offline',
          run: async () => {
            await change('/api/offline', { offline: !isOffline })
            return isOffline ? 'The mirror is online.' : 'The mirror is offline.'
          },
        })
      }
    />
  )
}

function ThemeButton() {
  const next = themes[(themes.indexOf(theme.value) + 1) % themes.length]!
  return (
    <button type="button" title={`Change to: ${next}`} onClick={() => (theme.value = next)}>
      <span>Theme: </span>
      {theme.value}
    </button>
  )
}

function Footer() {
  const isLocked = connection.value === 'locked'
  const known = isLocked ? undefined : status.value
  return (
    <footer>
      {known && (
        <p>
          mirror {known.version}, up {formatSpan((now.value - Date.parse(known.startedAt)) / 1000)}; cache{' '}
          {known.endpoints.cache.join(', ')}
          {known.endpoints.registry.length > 0 && `; registry ${known.endpoints.registry.join(', ')}`}
        </p>
      )}
      {isLocked ? null : secret.value === undefined ? (
        <p>
          Read-only. To change things here: <Command text="mirror dashboard" />
        </p>
      ) : (
        <p>
          This browser may change things.{' '}
          <button type="button" onClick={() => void run(signOut).then(restart)}>
            End the session
          </button>
        </p>
      )}
    </footer>
  )
}

async function signOut(): Promise<string> {
  await endSession()
  return 'The session has ended.'
}

function route(): void {
  const name = location.hash.slice(2)
  if (Object.hasOwn(views, name)) view.value = name as View
}

async function begin(): Promise<void> {
  refusal.value = await openSession()
}

effect(() => {
  document.title = title.value
})
effect(() => {
  document.documentElement.dataset['theme'] = theme.value
  localStorage.setItem('theme', theme.value)
})
route()
addEventListener('hashchange', () => {
  if (location.hash.startsWith('#ticket=')) void begin().then(restart)
  route()
})
render(<App />, document.body)
// Wait for the session, because a mirror in a container refuses all that comes before it.
void begin().then(startLive)
