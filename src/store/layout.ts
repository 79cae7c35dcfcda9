import { randomBytes } from 'node:crypto'
import { opendir, readdir, rename, rmdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { ignoreMissing, makeFolder, pathExists, syncFolder } from '../lib/fs.ts'
import { getDigestAlgorithm, getDigestHex, type Digest, type DigestAlgorithm } from '../oci/reference.ts'

const formatVersion = 2

/** Marks the name of a file that stays in the quarantine. */
const permanentMark = '-damaged-'

/** Holds the paths of a store. */
export type StoreLayout = ReturnType<typeof createStoreLayout>

/** Creates all paths of the store in the folder `root`; no other code joins them. `version`: 1 for the format of release 0.1. */
export function createStoreLayout(root: string, version = formatVersion) {
  const home = join(root, `v${version}`)
  const blobs = join(home, 'blobs')
  const temporary = join(home, 'tmp')
  const metadata = join(home, 'metadata')
  const repositories = join(home, 'repositories')
  const quarantine = join(home, 'quarantine')
  const setAside = (path: string) => join(quarantine, `${basename(path)}-${createRandomName()}`)
  const blobFolder = (algorithm: DigestAlgorithm) => join(blobs, algorithm)
  const isNew = async () => (await hasNoEntry(blobFolder('sha256'))) && (await hasNoEntry(blobFolder('sha512')))
  return {
    /** Names the folder of the store. */
    root,
    /** Names the folder of this format version, which holds all the others. */
    home,
    /** Names the blob folder of an OCI image layout. */
    blobs,
    temporary,
    /** Holds the log of the metadata. */
    metadata,
    /** Holds the records of release 0.1, until they are migrated. */
    repositories,
    quarantine,
    /** Holds what `openMetadata` needs. */
    metadataFiles: { folder: metadata, previousFolder: repositories, setAside, isNew },
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
    /** Returns a new path in `quarantine` for a damaged file, or for the damaged parts of one. */
    setAside,
    /** Returns the original path of a journal that release 0.1 has set aside for good; undefined for any other name. */
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
  folders.push(layout.temporary, layout.metadata, layout.quarantine)
  for (const folder of folders) await makeFolder(folder)
}

/** Reports whether a folder is empty or absent, in a time that does not depend on the number of its entries. */
async function hasNoEntry(path: string): Promise<boolean> {
  const folder = await ignoreMissing(() => opendir(path))
  if (!folder) return true
  try {
    return (await folder.read()) === null
  } finally {
    await folder.close()
  }
}

/** Reports whether the folder holds a store of release 0.1 that was not migrated. An empty folder of this format counts as none. */
export async function isPreviousFormat(root: string): Promise<boolean> {
  const names = await ignoreMissing(() => readdir(createStoreLayout(root).home))
  return (names ?? []).length === 0 && (await pathExists(createStoreLayout(root, 1).home))
}

/**
 * Moves a store of release 0.1 to the folder of this format, so that release 0.1 refuses to use it. Its records stay in
 * `layout.repositories`. The caller must have held its lock.
 */
export async function movePreviousStore(root: string): Promise<void> {
  const { home } = createStoreLayout(root)
  await ignoreMissing(() => rmdir(home))
  await rename(createStoreLayout(root, 1).home, home)
  await syncFolder(root)
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
