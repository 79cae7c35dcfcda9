import { BudgetError } from '../lib/memory.ts'
import { Slots } from '../lib/async.ts'

const mostWaiting = 64
/** How long one waits for its turn, ms. */
const patience = 20_000

/** Turns of those who read large lists as a whole: one at a time, so that the memory for one of them is enough for all. */
export class ListTurns {
  readonly #slots = new Slots(1)

  /**
   * Runs the task when it is its turn. The signal gives the place in the queue up: its reason is thrown. Throws a BudgetError when
   * too many wait, or when the turn takes too long to come.
   */
  async run<T>(task: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (this.#slots.waiting >= mostWaiting) throw tooMany()
    const release = await this.#slots.take(patience, { signal })
    if (!release) throw tooMany()
    try {
      return await task()
    } finally {
      release()
    }
  }
}

function tooMany(): BudgetError {
  return new BudgetError('The mirror reads as many large lists as it may.')
}
