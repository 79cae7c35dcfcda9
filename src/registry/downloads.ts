import type { Digest } from '../oci/digest.ts'
import { startDownload, type Download, type DownloadOptions } from '../cache/download.ts'

/** Which repository, and by whose credential, a download was started for. */
export interface Origin {
  readonly host: string
  readonly name: string
  readonly identity: string
}

export interface RunningDownload {
  readonly origin: Origin
  readonly download: Download
}

/** The fetches under way. Of those of one digest newcomers join the latest; earlier ones have dropped bytes on a full disk. */
export class Downloads {
  readonly #running = new Map<Digest, RunningDownload>()
  readonly #all = new Set<Download>()
  /** How many have ended: tells whether one ended while something was awaited. */
  ended = 0

  get(digest: Digest): RunningDownload | undefined {
    const running = this.#running.get(digest)
    return running?.download.canFollowFrom(0) ? running : undefined
  }

  has(digest: Digest): boolean {
    return this.#running.has(digest)
  }

  start(origin: Origin, options: Omit<DownloadOptions, 'onSettled'>): Download {
    const onSettled = () => {
      this.ended += 1
      this.#all.delete(download)
      if (this.#running.get(options.digest)?.download === download) this.#running.delete(options.digest)
    }
    const download = startDownload({ ...options, onSettled })
    this.#running.set(options.digest, { origin, download })
    this.#all.add(download)
    return download
  }

  /** Resolves when every fetch has ended. */
  async settle(): Promise<void> {
    await Promise.all(Array.from(this.#all, ({ settled }) => settled))
  }
}
