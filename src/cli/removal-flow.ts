import { listMatches, type NamedRemoval, removeByName } from '../admin/names.ts'
import type { ListedImage, Naming, RemovalReport } from '../admin/api.ts'
import { renderRemoval } from './render/table.ts'
import { confirm, createPrompt, type Terminal } from './terminal.ts'

type StoredImage = ListedImage & { readonly bytes: number }

interface RemovalRequest extends Pick<Terminal, 'info'> {
  /** Holds the names and patterns as the user wrote them. */
  readonly given: readonly string[]
  readonly store: {
    readonly naming: Omit<Naming, 'images'>
    list(): Promise<readonly StoredImage[]>
    remove(request: { names: string[]; dryRun: boolean }): Promise<RemovalReport>
  }
  /** Is true for pushed images. */
  readonly isPushed?: boolean
  readonly yes: boolean
  readonly dryRun: boolean
}

/**
 * Removes images by names and patterns, and shows them with their sizes before a question: before patterns remove several images, and
 * on a terminal before any pushed image goes, which has no other copy here. Undefined when the user does not agree. `stored`: the
 * images before the removal. Throws NotInteractiveError for several matches without a terminal and without `yes`.
 */
export async function removeConfirmed({
  given,
  store,
  isPushed = false,
  yes,
  dryRun,
  info,
}: RemovalRequest): Promise<(NamedRemoval & { readonly stored: readonly StoredImage[] }) | undefined> {
  const images = await store.list()
  const naming = { ...store.naming, images }
  const remove = (dry: boolean) => removeByName(given, naming, (names) => store.remove({ names, dryRun: dry }))
  if (!yes && !dryRun) {
    const mustAgree = listMatches(given, naming).length > 0
    const preview = () => remove(true)
    if (!(await agreeToRemoval({ preview, listed: images, isPushed, mustAgree, info }))) return undefined
  }
  return { ...(await remove(dryRun)), stored: images }
}

interface Consent extends Pick<Terminal, 'info'> {
  /** Returns what would be removed. */
  readonly preview: () => Promise<Pick<RemovalReport, 'images' | 'blobs' | 'bytes'>>
  readonly listed?: readonly StoredImage[]
  /** Is true for pushed images, which are asked for on every terminal. */
  readonly isPushed: boolean
  /** Is true for a removal that needs an answer also without a terminal. */
  readonly mustAgree: boolean
}

/** Shows what would be removed, and asks; the Enter key means no. Returns true without a question where none is needed. */
export async function agreeToRemoval({ preview, listed, isPushed, mustAgree, info }: Consent): Promise<boolean> {
  const prompt = createPrompt(process.stdin, process.stdout)
  if (!mustAgree && !(isPushed && prompt)) return true
  if (prompt) {
    const removal = await preview()
    if (removal.images.length + removal.blobs === 0) return true
    info(renderRemoval({ ...removal, unknown: [] }, true, listed))
  }
  const question = isPushed ? 'Remove this from the registry? The mirror has no other copy.' : 'Remove them?'
  if (await confirm({ prompt }, { yes: false }, question, false)) return true
  info('Nothing was done.')
  return false
}
