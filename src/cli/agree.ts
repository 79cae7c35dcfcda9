import type { Talk } from './talk.ts'
import { UnaskedError } from './unasked-error.ts'

/** Whether to go on: by flag, or by the answer of a person. Throws UnaskedError where there is neither. */
export async function agree(
  talk: Pick<Talk, 'prompt'>,
  { yes }: { readonly yes: boolean },
  question: string,
): Promise<boolean> {
  if (yes) return true
  if (talk.prompt) return talk.prompt.confirm(question)
  throw new UnaskedError()
}
