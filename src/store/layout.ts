import { createHash, randomBytes } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { digestAlgorithm, digestHex, type Digest, type DigestAlgorithm } from '../oci/reference.ts'

const formatVersion = 1

/** Marks the name of a file that stays in the quarantine. */
const permanentMark = '-damaged-'

/** All paths of a store; no other code joins them. `blobs` is the blob folder of an OCI image layout. */
export interface StoreLayout {
  /** The folder of the store. */
  readonly root: string
  /** The folder of this format version, which holds all the others. */
  readonly home: string
  readonly blobs: string
  readonly temporary: string
  readonly repositories: string
  readonly quarantine: string
  readonly lock: string
  /** Exists while no process has the store open and the last stop was clean. */
  readonly cleanMarker: string
  /**
   * Exists instead of `cleanMarker` when the last stop was clean, but some blobs were not verified since an earlier unclean stop. Older
   * versions know only `cleanMarker`.
   */
  readonly uncheckedMarker: string
  readonly runningClock: string
  blobFolder(algorithm: DigestAlgorithm): string
  blob(digest: Digest): string
  /** Returns a new random path in `temporary`. */
  temporaryBlob(): string
  /** Returns a new path in `quarantine`. */
  quarantined(digest: Digest): string
  /**
   * Returns the path of a repository's file. Its name is a hash, because a repository name may be longer than a file name allows, or
   * differ from another only in ways that the file system ignores.
   */
  repository(host: string, name: string): string
  /** Returns the path of a pushed repository's journal, whose name is a hash too. */
  journal(name: string): string
  /** Returns a new path in `quarantine` for an unreadable file. */
  setAside(path: string): string
  /** Returns a new path in `quarantine` for an unreadable file that holds a repository's only records. It stays until the user removes it. */
  setAsideForGood(path: string): string
  /** Returns the original path of a file with a name from `setAsideForGood`; undefined for any other name. */
  originOf(name: string): string | undefined
  /** Returns the path of an entry from `readdir`. */
  entry(folder: string, name: string): string
}

/** Creates the layout of the store in this folder. */
export function storeLayout(root: string): StoreLayout {
  const home = join(root, `v${formatVersion}`)
  const blobs = join(home, 'blobs')
  const temporary = join(home, 'tmp')
  const repositories = join(home, 'repositories')
  const quarantine = join(home, 'quarantine')
  const blobFolder = (algorithm: DigestAlgorithm) => join(blobs, algorithm)
  return {
    root,
    home,
    blobs,
    temporary,
    repositories,
    quarantine,
    lock: join(home, 'lock'),
    cleanMarker: join(home, 'clean'),
    uncheckedMarker: join(home, 'unchecked'),
    runningClock: join(home, 'running.json'),
    blobFolder,
    blob: (digest) => join(blobFolder(digestAlgorithm(digest)), digestHex(digest)),
    temporaryBlob: () => join(temporary, createRandomName()),
    quarantined: (digest) => join(quarantine, `${digestAlgorithm(digest)}-${digestHex(digest)}-${createRandomName()}`),
    repository: (host, name) =>
      join(repositories, `${createHash('sha256').update(`${host}/${name}`).digest('hex')}.json`),
    journal: (name) => join(repositories, `${createHash('sha256').update(name).digest('hex')}.jsonl`),
    setAside: (path) => join(quarantine, `${basename(path)}-${createRandomName()}`),
    setAsideForGood: (path) => join(quarantine, `${basename(path)}${permanentMark}${createRandomName()}`),
    originOf: (name) => {
      const at = name.indexOf(permanentMark)
      return at === -1 ? undefined : join(repositories, name.slice(0, at))
    },
    entry: join,
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
    if (errnoOf(error) === 'ENOENT') return []
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
