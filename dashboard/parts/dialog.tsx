import { signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import type { RemovalReport } from '../../src/admin/api.ts'
import { refresh } from '../data/live.ts'
import { cleanText, formatBytes, formatCount } from '../data/format.ts'
import { change, describe } from '../data/session.ts'
import { toast } from './pieces.tsx'

interface Question {
  readonly title: string
  /** Says what happens. */
  readonly text: ComponentChildren
  /** Names the button that does it. */
  readonly label: string
  readonly isDangerous?: boolean
  /** Describes what would be changed; the button waits for it. */
  readonly preview?: () => Promise<ComponentChildren>
  /** Does it; returns what was done. */
  readonly run: () => Promise<string>
}

const question = signal<Question | undefined>(undefined)
const preview = signal<ComponentChildren>(undefined)
const isReady = signal(false)
const isRunning = signal(false)

/** Asks for confirmation in a dialog, then does it. */
export function ask(asked: Question): void {
  question.value = asked
  preview.value = undefined
  isReady.value = asked.preview === undefined
  isRunning.value = false
  void lookAhead(asked)
}

async function lookAhead(asked: Question): Promise<void> {
  if (!asked.preview) return
  try {
    const found = await asked.preview()
    // Keep the answer to an earlier question out of this one.
    if (question.value !== asked) return
    preview.value = found
    isReady.value = true
  } catch (error) {
    if (question.value === asked) preview.value = <p class="bad">{describe(error)}</p>
  }
}

/** Does something and shows the result or the failure. */
export async function run(action: () => Promise<string>): Promise<void> {
  try {
    toast(await action())
  } catch (error) {
    toast(describe(error), 'bad')
  }
  refresh()
}

/** Asks to remove something, after a look at what would go. `path` takes `dryRun`. */
export function askToRemove(
  asked: Omit<Question, 'preview' | 'run' | 'isDangerous'>,
  path: string,
  body: object,
): void {
  ask({
    ...asked,
    isDangerous: true,
    preview: async () => <Removal report={await change(path, { ...body, dryRun: true })} />,
    run: async () => {
      const { images, bytes } = await change<RemovalReport>(path, body)
      return `Removed ${countImages(images.length)}, ${formatBytes(bytes)}.`
    },
  })
}

const countImages = (count: number) => `${formatCount(count)} image${count === 1 ? '' : 's'}`

function Removal({ report: { images, blobs, bytes } }: { report: RemovalReport }) {
  if (images.length === 0 && blobs === 0) return <p>Nothing to remove.</p>
  return (
    <>
      <p>
        This removes {countImages(images.length)}, {formatCount(blobs)} {blobs === 1 ? 'blob' : 'blobs'},{' '}
        <b>{formatBytes(bytes)}</b>:
      </p>
      <ul class="names">
        {images.slice(0, 50).map((name) => (
          <li key={name}>{cleanText(name)}</li>
        ))}
        {images.length > 50 && <li>… and {formatCount(images.length - 50)} more</li>}
      </ul>
    </>
  )
}

export function Dialog() {
  const element = useRef<HTMLDialogElement>(null)
  const asked = question.value
  useEffect(() => {
    if (asked) element.current?.showModal()
  }, [asked])
  if (!asked) return null
  const close = () => element.current?.close()
  const confirm = async () => {
    isRunning.value = true
    await run(asked.run)
    // Another question may be open by now.
    if (question.value === asked) close()
  }
  return (
    <dialog ref={element} aria-labelledby="dialog-title" onClose={() => (question.value = undefined)}>
      <h2 id="dialog-title">{asked.title}</h2>
      {asked.text}
      {preview.value ?? (!isReady.value && <p class="quiet">Looking at what this changes …</p>)}
      <div class="buttons">
        <button type="button" onClick={close}>
          {isRunning.value ? 'Close' : 'Cancel'}
        </button>
        <button
          type="button"
          class={asked.isDangerous ? 'bad' : 'primary'}
          disabled={!isReady.value || isRunning.value}
          aria-busy={isRunning.value}
          onClick={() => void confirm()}
        >
          {isRunning.value ? `${asked.label} …` : asked.label}
        </button>
      </div>
    </dialog>
  )
}
