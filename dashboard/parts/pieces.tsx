import { signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { secret } from '../data/state.ts'
import { cleanText } from '../data/format.ts'

export type Tone = 'good' | 'info' | 'warn' | 'bad' | 'quiet'

/** Explains a button that needs a session. */
export const sessionHint = 'Run “mirror dashboard” in a terminal to change things here.'

const toasts = signal<readonly { readonly id: number; readonly text: string; readonly tone: Tone }[]>([])
let lastToast = 0

/** Shows a message for some seconds, and reads it to a screen reader. */
export function toast(text: string, tone: Tone = 'good'): void {
  const id = ++lastToast
  toasts.value = [...toasts.value.slice(-2), { id, text, tone }]
  setTimeout(() => (toasts.value = toasts.value.filter((entry) => entry.id !== id)), tone === 'bad' ? 12_000 : 6000)
}

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {toasts.value.map(({ id, text, tone }) => (
        <p key={id} class={tone}>
          {cleanText(text)}
        </p>
      ))}
    </div>
  )
}

export function Badge({ tone, hint, children }: { tone: Tone; hint?: string; children: ComponentChildren }) {
  return (
    <span class={`badge ${tone}`} title={hint}>
      {children}
    </span>
  )
}

/** Shows a command with a button that copies it. */
export function Command({ text }: { text: string }) {
  const copy = async (button: EventTarget) => {
    try {
      await navigator.clipboard.writeText(text)
      toast('Copied.')
    } catch {
      // Select the text where the browser does not let a page copy.
      const code = (button as HTMLElement).previousElementSibling
      if (code) getSelection()?.selectAllChildren(code)
    }
  }
  return (
    <span class="command">
      <code>{cleanText(text)}</code>
      <button
        type="button"
        aria-label={`Copy: ${cleanText(text)}`}
        onClick={({ currentTarget }) => void copy(currentTarget)}
      >
        Copy
      </button>
    </span>
  )
}

interface ActionProps {
  readonly label: string
  /** Names the object for screen readers, as there are many buttons of the same label. */
  readonly about?: string
  readonly tone?: Tone
  /** Is shown while it runs. */
  readonly busyLabel?: string
  /** Does it. The button is off until a promise is settled. */
  readonly onClick: () => Promise<void> | void
}

/** Lists the actions under way by their keys. They outlive their buttons, which a change of the view removes. */
const busy = signal<ReadonlySet<string>>(new Set())

/** Shows a button that changes something; it explains itself while there is no session. */
export function Action({ label, about, tone, busyLabel = `${label} …`, onClick }: ActionProps) {
  const key = `${label}\n${about ?? ''}`
  const isBusy = busy.value.has(key)
  const isOff = secret.value === undefined || isBusy
  const click = async () => {
    const done = onClick()
    if (!done) return
    busy.value = new Set([...busy.value, key])
    await done.finally(() => (busy.value = new Set([...busy.value].filter((other) => other !== key))))
  }
  return (
    <button
      type="button"
      class={tone}
      disabled={isOff}
      title={secret.value === undefined ? sessionHint : undefined}
      aria-label={about === undefined ? undefined : `${isBusy ? busyLabel : label}: ${cleanText(about)}`}
      aria-busy={isBusy}
      onClick={() => void click()}
    >
      {isBusy ? busyLabel : label}
    </button>
  )
}

/** Shows an image name with the registry quiet and the tag or digest apart. */
export function ImageName({ name }: { name: string }) {
  const clean = cleanText(name)
  const [, registry = '', path = clean, reference = ''] = /^([^/]*[.:][^/]*\/)?(.*?)(@.*|:[^:/]*)?$/.exec(clean) ?? []
  const short = reference.startsWith('@') ? `${reference.slice(0, 20)}…` : reference
  return (
    <span class="image" title={clean}>
      <span>{registry}</span>
      {path}
      <b>{short}</b>
    </span>
  )
}
