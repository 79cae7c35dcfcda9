import { listMatches } from '../admin/names.ts'
import type { Naming, RemovalReport } from '../admin/api.ts'
import { renderRemoval } from './render/table.ts'
import { confirm, createPrompt, type Terminal } from './terminal.ts'

interface MatchesRequest extends Pick<Terminal, 'info'> {
  /** Holds the names and patterns as the user wrote them. */
  readonly given: readonly string[]
  readonly naming: Naming & { readonly images: readonly { readonly name: string; readonly bytes: number }[] }
  readonly yes: boolean
  /** Reports what the removal of these names would remove. */
  readonly preview: (names: string[]) => Promise<RemovalReport>
}

/**
 * Asks before patterns remove several images or repositories, and shows them with their sizes. Returns true to continue. Throws
 * NotInteractiveError without a terminal and without --yes.
 */
export async function confirmMatches({ given, naming, yes, preview, info }: MatchesRequest): Promise<boolean> {
  const matches = yes ? [] : listMatches(given, naming)
  if (matches.length === 0) return true
  const prompt = createPrompt(process.stdin, process.stdout)
  if (prompt) info(renderRemoval(await preview(matches), true, naming.images))
  const isAgreed = await confirm({ prompt }, { yes }, 'Remove them?')
  if (!isAgreed) info('Nothing was done.')
  return isAgreed
}
