/** A file with what must survive its being replaced. */
export interface FileState {
  readonly bytes: Uint8Array
  /** Permission bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
}

/** Where a client's files lie: on this machine, in a VM, in a container. Paths are absolute there. */
export interface FilePort {
  /** Undefined when there is no file; throws what the system says when it cannot be read. */
  read(path: string): Promise<FileState | undefined>
  /** The paths of all files below a folder, in order; none when there is no folder. */
  list(folder: string): Promise<string[]>
  /**
   * Puts the content in place, all of it or nothing of it; a symbolic link stays and what it points to is replaced.
   * Returns the folders it had to make, outermost first.
   */
  write(path: string, content: Uint8Array, attributes: Omit<FileState, 'bytes'> | undefined): Promise<string[]>
  /** What a symbolic link points to, not the link. No failure when it is gone already. */
  remove(path: string): Promise<void>
  /** Whether `write` may replace or make this file. */
  mayWrite(path: string): Promise<boolean>
  /** Takes away what a run of ours that was killed has left beside this file; absent where nothing can be left. */
  tidy?(path: string): Promise<void>
  /** Only if it is empty; no failure otherwise. */
  removeFolder(path: string): Promise<void>
}
