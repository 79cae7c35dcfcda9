import { closeSync, copyFileSync, fstatSync, ftruncateSync, openSync, renameSync, rmSync, writeSync } from 'node:fs'
import { devNull } from 'node:os'
import { errnoOf } from '../lib/errors.ts'
import type { LogSink } from '../daemon/logging.ts'

export interface LogFileOptions {
  /** The file holds at most so much, and `<file>.1`, which is older, as much again. */
  readonly mostBytes?: number
  /**
   * Makes the descriptor `to` mean what `from` means, as dup2 does. What others write to stderr follows the log then. Without it
   * the log is copied and emptied, so that stderr stays the same file.
   */
  readonly redirect?: ((from: number, to: number) => boolean) | undefined
  /** The descriptor that others write to, and that is this file: stderr. */
  readonly shared?: number | undefined
}

const megabyte = 1024 * 1024

/**
 * A log that is limited at every write: what does not fit begins a new file, and the full one becomes `<file>.1` in place of
 * the one before. Throws the system's error when it cannot be opened.
 */
export class LogFile implements LogSink {
  readonly #path: string
  readonly #mostBytes: number
  readonly #redirect: LogFileOptions['redirect']
  readonly #shared: number | undefined
  #descriptor: number
  /** Open only to be closed when the log is put aside: no other descriptor may be left then. */
  readonly #spare: number[] = []

  constructor(path: string, { mostBytes = 16 * megabyte, redirect, shared }: LogFileOptions = {}) {
    this.#path = path
    this.#mostBytes = mostBytes
    this.#redirect = redirect
    this.#shared = shared
    this.#descriptor = openSync(path, 'a', 0o600)
    this.#reserve()
  }

  /** Returns how many bytes were written; throws the system's error. */
  write(bytes: Uint8Array, from: number): number {
    // The log may have been removed by hand; what is written to it then is seen by nobody.
    const isRemoved = fstatSync(this.#descriptor).nlink === 0 && !this.#reopen()
    const { size } = fstatSync(this.#descriptor)
    if (size > 0 && size + bytes.length - from > this.#mostBytes) {
      if (isRemoved) ftruncateSync(this.#descriptor)
      else this.#putAside()
    }
    return writeSync(this.#descriptor, bytes, from)
  }

  close(): void {
    this.#releaseSpare()
    closeSync(this.#descriptor)
  }

  /** Goes on in the file that is at the path now, which somebody may have put there, or in a new one. */
  #reopen(): boolean {
    try {
      this.#take(openSync(this.#path, 'a', 0o600))
      return true
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      return false
    }
  }

  #putAside(): void {
    this.#releaseSpare()
    if (this.#redirect === undefined) this.#copy()
    else this.#rename()
    this.#reserve()
  }

  #releaseSpare(): void {
    for (const descriptor of this.#spare.splice(0)) closeSync(descriptor)
  }

  /** As many as it takes to put the log aside: a new file has one descriptor, a copy has two. */
  #reserve(): void {
    const wanted = this.#redirect === undefined ? 2 : 1
    try {
      while (this.#spare.length < wanted) this.#spare.push(openSync(devNull, 'r'))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
  }

  #rename(): void {
    try {
      renameSync(this.#path, `${this.#path}.1`)
      this.#take(openSync(this.#path, 'ax', 0o600))
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      this.#restore()
    }
  }

  /** Goes on in another file. */
  #take(descriptor: number): void {
    const before = this.#descriptor
    this.#descriptor = descriptor
    if (this.#shared !== undefined) this.#redirect?.(descriptor, this.#shared)
    closeSync(before)
  }

  /** No new file is to be had: the limit holds all the same. */
  #restore(): void {
    try {
      renameSync(`${this.#path}.1`, this.#path)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }

  #copy(): void {
    const older = `${this.#path}.1`
    try {
      // Its space may be all there is.
      rmSync(older, { force: true })
      copyFileSync(this.#path, older)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
    ftruncateSync(this.#descriptor)
  }
}
