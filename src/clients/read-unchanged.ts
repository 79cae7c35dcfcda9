import { MirrorError } from '../lib/errors.ts'
import type { FileChange } from './client-config.ts'
import type { FilePort, FileState } from './file-port.ts'

/** The file as it is. Throws MirrorError when that is not what the change was made from. */
export async function readUnchanged(
  { path, before }: Pick<FileChange, 'path' | 'before'>,
  files: FilePort,
): Promise<FileState | undefined> {
  const state = await files.read(path)
  const same =
    before === undefined ? state === undefined : state !== undefined && Buffer.from(before).equals(state.bytes)
  if (same) return state
  throw new MirrorError(`${path} was changed by somebody else just now; nothing was written.`, {
    hints: ['run the same command again'],
  })
}
