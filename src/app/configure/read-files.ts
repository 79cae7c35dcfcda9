import { FilesNow } from '../../clients/files-now.ts'
import type { WantedFiles } from '../../clients/client-config.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { MirrorError, errnoOf, exitCode } from '../../lib/errors.ts'
import { fileFailureReason } from '../../lib/system-errors.ts'

/**
 * Reads all that a writer wants to see. Throws MirrorError (usage) for what may not be read; `asRoot`: the command by which root
 * would do the same.
 */
export async function readFiles(
  files: FilePort,
  wanted: WantedFiles,
  asRoot?: () => Promise<string>,
): Promise<FilesNow> {
  const found = new Map<string, Uint8Array>()
  for (const path of wanted.files) await read(path)
  for (const tree of wanted.trees)
    for (const path of await explained(tree, () => files.list(tree), asRoot)) await read(path)
  return new FilesNow(found)

  async function read(path: string): Promise<void> {
    const state = await explained(path, () => files.read(path), asRoot)
    if (state) found.set(path, state.bytes)
  }
}

async function explained<T>(
  path: string,
  ask: () => Promise<T>,
  asRoot: (() => Promise<string>) | undefined,
): Promise<T> {
  try {
    return await ask()
  } catch (cause) {
    const why = errnoOf(cause)
    if (why === undefined) throw cause
    const denied = why === 'EACCES' || why === 'EPERM'
    throw new MirrorError(
      denied ? `No permission to read ${path}.` : `${path} cannot be read: ${fileFailureReason(cause)}.`,
      {
        exit: exitCode.usage,
        hints: denied && asRoot ? [await asRoot(), '--scope user   (where the client has files of yours)'] : [],
        cause,
      },
    )
  }
}
