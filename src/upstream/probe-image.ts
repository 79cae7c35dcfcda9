import { type CanaryImage, makeCanaryImage } from './canary-image.ts'

/** An image that nobody else has, offered for a while under every registry's name. */
export interface Canary {
  readonly id: string
  /** The repository's name on any registry: `mirror-check/3f…`. No account on Docker Hub can have a hyphen in its name. */
  readonly repository: string
  readonly tag: string
  readonly image: CanaryImage
  /** The registries under whose name it was asked for, with how often. */
  readonly seen: Map<string, number>
}

const prefix = 'mirror-check/'

/** Whether a repository's name is one under which a canary is, or was, offered. */
export function isCanaryName(repository: string): boolean {
  return repository.startsWith(prefix)
}

/** Who forgot to end one is done by then. */
const lifetimeMs = 15 * 60_000
const most = 20

/** Images by which a client's pull proves that it came through this mirror. */
export class Canaries {
  readonly #byRepository = new Map<string, { readonly canary: Canary; readonly until: number }>()
  readonly #now: () => number
  readonly #random: () => string

  /** `now` in ms, monotonic; `random`: 16 bytes or more in lower-case hex. */
  constructor(now: () => number, random: () => string) {
    this.#now = now
    this.#random = random
  }

  offer(): Canary {
    this.#forgetOld()
    const [oldest] = this.#byRepository.keys()
    if (this.#byRepository.size >= most && oldest !== undefined) this.#byRepository.delete(oldest)
    const id = this.#random()
    const canary = { id, repository: prefix + id, tag: 'check', image: makeCanaryImage(id), seen: new Map() }
    this.#byRepository.set(canary.repository, { canary, until: this.#now() + lifetimeMs })
    return canary
  }

  /** Undefined for every repository that is none of ours. */
  find(repository: string): Canary | undefined {
    if (!isCanaryName(repository)) return undefined
    this.#forgetOld()
    return this.#byRepository.get(repository)?.canary
  }

  /** Offers it no longer; undefined when it was not offered. */
  end(id: string): Canary | undefined {
    const canary = this.find(prefix + id)
    if (canary) this.#byRepository.delete(canary.repository)
    return canary
  }

  #forgetOld(): void {
    for (const [repository, { until }] of this.#byRepository)
      if (until <= this.#now()) this.#byRepository.delete(repository)
  }
}
