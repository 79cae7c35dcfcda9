import type { Paint } from './paint.ts'
import { isDebugging, renderError } from './render-error.ts'
import { UnaskedError } from './unasked-error.ts'

export interface FailureTeller {
  /** Of one among several: the others go on. Its files may be done, and only the reload have failed. */
  tell(what: string, error: Error): void
  /** Says what holds for all of them. */
  end(): void
}

/** Tells of what fails of several things. That nobody can be asked is no failure of any of them, and is told once, at the end. */
export function createFailureTeller(say: (text: string) => void, paint: Paint): FailureTeller {
  const render = (error: Error) => renderError(error, paint, { debug: isDebugging(process.env) }).trimEnd()
  let unasked: UnaskedError | undefined
  return {
    tell(what, error) {
      if (error instanceof UnaskedError) unasked = error
      else say(`${what}\n${render(error)}`)
    },
    end() {
      if (unasked !== undefined) say(render(unasked))
    },
  }
}
