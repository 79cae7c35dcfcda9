import { readFile } from 'node:fs/promises'
import { createHash } from 'node:crypto'
import { posix } from 'node:path'
import { errnoOf, exitCode, MirrorError } from '../../lib/errors.ts'
import { fileFailureReason } from '../../lib/system-errors.ts'
import { bytesFile, tarBytes, type TarEntry } from '../../lib/tar.ts'
import { dataFolder, handedFolder, handedFolderOf, homeFolder } from '../../daemon/container/spec.ts'

/** Texts and bytes by their names in the folder of what is handed over. */
export type HandedFiles = Readonly<Record<string, string | Uint8Array>>

export interface HandedArchive {
  readonly files: HandedFiles
  /** Of the container that they are for. */
  readonly instance: string
  /** The admin token. */
  readonly token: string | undefined
  /** `uid:gid` of the container's user, who alone may read them. */
  readonly user: string
}

/** The tar archive for the data folder: files 0600, folders 0700, of the container's user. */
export function handedArchive({ files, instance, token, user }: HandedArchive): Promise<Buffer> {
  const [uid = 0, gid = 0] = user.split(':').map(Number)
  const owner = { uid, gid }
  const home = posix.relative(dataFolder, homeFolder)
  const all = posix.relative(dataFolder, handedFolder)
  const handed = posix.relative(dataFolder, handedFolderOf(instance))
  const folders = [home, all, handed, `${handed}/docker`, ...(token === undefined ? [] : [`${home}/state`])]
  const folder = (path: string): TarEntry => ({ path, mode: 0o700, ...owner, content: { kind: 'folder' } })
  const file = (path: string, content: string | Uint8Array): TarEntry => ({
    path,
    mode: 0o600,
    ...owner,
    content: bytesFile(content),
  })
  return tarBytes([
    ...folders.map(folder),
    ...Object.entries(files).map(([name, content]) => file(`${handed}/${name}`, content)),
    ...(token === undefined ? [] : [file(`${home}/state/token`, `${token}\n`)]),
  ])
}

/** The bytes of files of this machine. Throws a MirrorError (exit 2) for one that cannot be read. */
export async function readHandedFiles(paths: Readonly<Record<string, string>>): Promise<HandedFiles> {
  const entries = Object.entries(paths).map(async ([name, path]) => [name, await read(path)] as const)
  return Object.fromEntries(await Promise.all(entries))
}

/** Tells files apart that differ in a byte or a name. */
export function hashOfFiles(files: HandedFiles): string {
  const hash = createHash('sha256')
  for (const [name, content] of Object.entries(files)) hash.update(`${name}\0${content.length}\0`).update(content)
  return hash.digest('hex').slice(0, 16)
}

async function read(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    throw new MirrorError(
      `The file ${path}, which the configuration names, cannot be read: ${fileFailureReason(error)}.`,
      {
        exit: exitCode.usage,
        cause: error,
      },
    )
  }
}
