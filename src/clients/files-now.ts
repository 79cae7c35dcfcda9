import { MirrorError, exitCode } from '../lib/errors.ts'
import type { FileChange } from './client-config.ts'

/** Files as they are at this moment, read before anything is planned. */
export class FilesNow {
  readonly #files: ReadonlyMap<string, Uint8Array>

  /** By absolute path; a file that is not there is not in the map. */
  constructor(files: ReadonlyMap<string, Uint8Array>) {
    this.#files = files
  }

  has(path: string): boolean {
    return this.#files.has(path)
  }

  /** Every file that was read, in the order of their paths. */
  get paths(): string[] {
    return [...this.#files.keys()].toSorted()
  }

  /**
   * The text as it stands, with its byte order mark and line ends; undefined when there is no such file. Throws a MirrorError
   * (usage) for bytes that are no UTF-8: they could not be written back as they were.
   */
  text(path: string): string | undefined {
    const bytes = this.#files.get(path)
    if (bytes === undefined) return undefined
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (cause) {
      if (!(cause instanceof TypeError)) throw cause
      throw new MirrorError(`${path} is not UTF-8 text, so it is left alone.`, { exit: exitCode.usage, cause })
    }
  }

  /** As they would be after these changes. */
  with(changes: readonly FileChange[]): FilesNow {
    const files = new Map(this.#files)
    for (const { path, after } of changes) {
      if (after === undefined) files.delete(path)
      else files.set(path, new TextEncoder().encode(after))
    }
    return new FilesNow(files)
  }

  /** The plan's change of one file; none when the text is what it was. */
  change(path: string, after: string | undefined): FileChange[] {
    const before = this.text(path)
    return before === after ? [] : [{ path, before, after }]
  }
}
