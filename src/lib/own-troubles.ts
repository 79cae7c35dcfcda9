import { open } from 'node:fs/promises'
import { devNull } from 'node:os'
import type { Clock } from './clock.ts'
import { codeOf, errnoOf } from './errors.ts'

type Part = 'fetch' | 'hash'

const does: Record<Part, string> = {
  fetch: 'The mirror cannot ask upstreams',
  hash: 'The mirror cannot check the digest of what it fetches',
}

/** A failure that has not come again for so long is over; ms. A rush uses up descriptors and memory for a moment only. */
const forgetMs = { rush: 30_000, other: 300_000 }
const rushCodes = /^(EMFILE|ENFILE|ENOMEM)$/

/** Codes of failures that lie in this process: no descriptor, no memory, a module or a thread that cannot be loaded. */
const ownCodes = /^(EMFILE|ENFILE|ENOMEM|MODULE_NOT_FOUND|ERR_MODULE_NOT_FOUND|ERR_DLOPEN_FAILED|ERR_WORKER_.*)$/

/** Returns the code of a failure that lies in this process, in the error or what has caused it; undefined for any other. */
export function ownFailureCode(error: unknown): string | undefined {
  const code = codeOf(error)
  if (code !== undefined && ownCodes.test(code)) return code
  if (error instanceof AggregateError) return error.errors.map(ownFailureCode).find((found) => found !== undefined)
  return error instanceof Error && error.cause !== undefined ? ownFailureCode(error.cause) : undefined
}

/** Hears how a part of the work goes. */
export interface WorkWatcher {
  failed(error: unknown): void
  worked(): void
}

/**
 * What keeps this process from fetching by its own fault. The outage of an upstream is none. A trouble ends with the next success
 * of the same part.
 */
export class OwnTroubles {
  readonly #clock: Clock
  readonly #parts = new Map<Part, { readonly reason: string; readonly until: number }>()

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Returns who is to hear of a part's failures and successes. Failures that lie elsewhere are passed over. */
  watch(part: Part): WorkWatcher {
    return {
      failed: (error) => {
        const code = part === 'hash' ? (codeOf(error) ?? 'the thread has ended') : ownFailureCode(error)
        if (code === undefined) return
        const until = this.#clock.monotonic() + (rushCodes.test(code) ? forgetMs.rush : forgetMs.other)
        this.#parts.set(part, { reason: `${does[part]}: ${code}`, until })
      },
      worked: () => void this.#parts.delete(part),
    }
  }

  /** Returns the reasons, one sentence each; empty when all is well. */
  async find(): Promise<string[]> {
    const now = this.#clock.monotonic()
    const noted = [...this.#parts.values()].filter(({ until }) => until >= now).map(({ reason }) => reason)
    const descriptors = await whyNoDescriptor()
    return descriptors === undefined ? noted : [...noted, descriptors]
  }
}

async function whyNoDescriptor(): Promise<string | undefined> {
  try {
    await (await open(devNull)).close()
    return undefined
  } catch (error) {
    const code = errnoOf(error)
    if (code === undefined) throw error
    return `The mirror cannot open a file: ${code}`
  }
}
