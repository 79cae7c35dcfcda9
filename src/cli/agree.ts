import { MirrorError, exitCode } from '../lib/errors.ts'
import type { Talk } from './talk.ts'

/** Whether to go on: by flag, or by the answer of a person. Throws MirrorError (usage) where there is neither. */
export async function agree(
  talk: Pick<Talk, 'prompt'>,
  { yes }: { readonly yes: boolean },
  question: string,
): Promise<boolean> {
  if (yes) return true
  if (talk.prompt) return talk.prompt.confirm(question)
  throw new MirrorError('Not a terminal: pass --yes to apply, or --dry-run to preview.', {
    exit: exitCode.usage,
    hints: ['--yes   (apply without asking)', '--dry-run   (only show what would be done)'],
  })
}
