import { createHash, randomBytes } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { getDigestAlgorithm, getDigestHex, type Digest, type DigestAlgorithm } from '../oci/reference.ts'

const formatVersion = 1

/** Marks the name of a file that stays in the quarantine. */
const permanentMark = '-damaged-'

/** Holds the paths of a store. */
export type StoreLayout = ReturnType<typeof createStoreLayout>

/** Creates all paths of the store in the folder `root`; no other code joins them. */
export function createStoreLayout(root: string) {
  const home = join(root, `v${formatVersion}`)
  const blobs = join(home, 'blobs')
  const temporary = join(home, 'tmp')
  const repositories = join(home, 'repositories')
  const quarantine = join(home, 'quarantine')
  const blobFolder = (algorithm: DigestAlgorithm) => join(blobs, algorithm)
  return {
    /** Names the folder of the store. */
    root,
    /** Names the folder of this format version, which holds all the others. */
    home,
    /** Names the blob folder of an OCI image layout. */
    blobs,
    temporary,
    repositories,
    quarantine,
    lock: join(home, 'lock'),
    /** Exists while no process has the store open and the last stop was clean. */
    cleanMarker: join(home, 'clean'),
    /**
     * Exists instead of `cleanMarker` when the last stop was clean, but some blobs were not verified since an earlier unclean stop. Older
     * versions know only `cleanMarker`.
     */
    uncheckedMarker: join(home, 'unchecked'),
    runningClock: join(home, 'running.json'),
    blobFolder,
    blob: (digest: Digest) => join(blobFolder(getDigestAlgorithm(digest)), getDigestHex(digest)),
    /** Returns a new random path in `temporary`. */
    temporaryBlob: () => join(temporary, createRandomName()),
    /** Returns a new path in `quarantine`. */
    quarantined: (digest: Digest) =>
      join(quarantine, `${getDigestAlgorithm(digest)}-${getDigestHex(digest)}-${createRandomName()}`),
    /**
     * Returns the path of a repository's file. Its name is a hash, because a repository name may be longer than a file name allows, or
     * differ from another only in ways that the file system ignores.
     */
    repository: (host: string, name: string) =>
      join(repositories, `${createHash('sha256').update(`${host}/${name}`).digest('hex')}.json`),
    /** Returns the path of a pushed repository's journal, whose name is a hash too. */
    journal: (name: string) => join(repositories, `${createHash('sha256').update(name).digest('hex')}.jsonl`),
    /** Returns a new path in `quarantine` for an unreadable file. */
    setAside: (path: string) => join(quarantine, `${basename(path)}-${createRandomName()}`),
    /** Returns a new path in `quarantine` for an unreadable file that holds a repository's only records. It stays until the user removes it. */
    setAsideForGood: (path: string) => join(quarantine, `${basename(path)}${permanentMark}${createRandomName()}`),
    /** Returns the original path of a file with a name from `setAsideForGood`; undefined for any other name. */
    originOf: (name: string): string | undefined => {
      const at = name.indexOf(permanentMark)
      return at === -1 ? undefined : join(repositories, name.slice(0, at))
    },
    /** Returns the path of an entry from `readdir`. */
    entry: (folder: string, name: string) => join(folder, name),
  }
}

/** Creates the missing folders of the store, durably and with mode 0700. */
export async function makeStoreFolders(layout: StoreLayout): Promise<void> {
  const folders = [layout.blobFolder('sha256'), layout.blobFolder('sha512')]
  folders.push(layout.temporary, layout.repositories, layout.quarantine)
  for (const folder of folders) await makeFolder(folder)
}

/** Throws a MirrorError when the folder holds a store of a newer version. The folder need not exist. */
export async function refuseNewerStore(root: string): Promise<void> {
  const names = await readdir(root).catch((error: unknown) => {
    if (getErrno(error) === 'ENOENT') return []
    throw error
  })
  const newer = names.find((name) => /^v\d+$/.test(name) && Number(name.slice(1)) > formatVersion)
  if (newer === undefined) return
  throw new MirrorError(`A newer version of mirror wrote the store at ${root} (format ${newer}).`, {
    exit: exitCode.usage,
    hints: [
      'Install that version of mirror',
      `Start with an empty store: remove ${join(root, newer)}`,
      'Use another folder: mirror up --data DIR',
    ],
  })
}

function createRandomName(): string {
  return randomBytes(16).toString('hex')
}
