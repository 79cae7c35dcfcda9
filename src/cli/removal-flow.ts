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
  readonly yes: boolean
  readonly dryRun: boolean
}

/**
 * Removes images by names and patterns. Asks before patterns remove several images, and shows them with their sizes; undefined when
 * the user does not agree. `stored`: the images before the removal. Throws NotInteractiveError without a terminal and without `yes`.
 */
export async function removeConfirmed({
  given,
  store,
  yes,
  dryRun,
  info,
}: RemovalRequest): Promise<(NamedRemoval & { readonly stored: readonly StoredImage[] }) | undefined> {
  const images = await store.list()
  const naming = { ...store.naming, images }
  const matches = yes || dryRun ? [] : listMatches(given, naming)
  if (matches.length > 0) {
    const prompt = createPrompt(process.stdin, process.stdout)
    if (prompt) info(renderRemoval(await store.remove({ names: matches, dryRun: true }), true, images))
    if (!(await confirm({ prompt }, { yes }, 'Remove them?'))) {
      info('Nothing was done.')
      return undefined
    }
  }
  const removal = await removeByName(given, naming, (names) => store.remove({ names, dryRun }))
  return { ...removal, stored: images }
}
