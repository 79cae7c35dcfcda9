import { createHash, randomBytes } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { digestAlgorithm, digestHex, type Digest, type DigestAlgorithm } from '../oci/digest.ts'

const formatVersion = 1

/** In the name of a file that stays in the quarantine. */
const permanentMark = '-damaged-'

/** Every path of a store; nobody else joins one. `blobs` is the blob folder of an OCI image layout. */
export interface StoreLayout {
  /** The folder the store was given. */
  readonly root: string
  /** The folder of this format version; everything below is in it. */
  readonly home: string
  readonly blobs: string
  readonly temporary: string
  readonly repositories: string
  readonly quarantine: string
  readonly lock: string
  /** There while no process has the store open and the last one ended in order. */
  readonly cleanMarker: string
  /** There in its stead while some blobs were not checked since an unclean stop before. Older versions know the other one only. */
  readonly uncheckedMarker: string
  readonly runningClock: string
  blobFolder(algorithm: DigestAlgorithm): string
  blob(digest: Digest): string
  /** A new name in `temporary`, not to be guessed. */
  temporaryBlob(): string
  /** A new name in `quarantine`. */
  quarantined(digest: Digest): string
  /** One file a repository. Hashed: a name may be longer than a file name, and differ from another in nothing a file system sees. */
  repository(host: string, name: string): string
  /** The journal of a pushed repository, named in the same way. */
  journal(name: string): string
  /** A new name in `quarantine` for a file that nobody can read. */
  setAside(path: string): string
  /** The same for the only record of what a repository holds: it stays until its user says what becomes of it. */
  setAsideForGood(path: string): string
  /** Where the file was that got this name from `setAsideForGood`; undefined for any other name. */
  originOf(name: string): string | undefined
  /** An entry that `readdir` has named. */
  entry(folder: string, name: string): string
}

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

/** Makes every folder of the store that is missing, durably and for the user alone. */
export async function makeStoreFolders(layout: StoreLayout): Promise<void> {
  const folders = [layout.blobFolder('sha256'), layout.blobFolder('sha512')]
  folders.push(layout.temporary, layout.repositories, layout.quarantine)
  for (const folder of folders) await makeFolder(folder)
}

/** Throws `MirrorError` when the folder holds a store of a newer version; a folder that is not there yet is fine. */
export async function refuseNewerStore(root: string): Promise<void> {
  const names = await readdir(root).catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  })
  const newer = names.find((name) => /^v\d+$/.test(name) && Number(name.slice(1)) > formatVersion)
  if (newer === undefined) return
  throw new MirrorError(`The store at ${root} was written by a newer version of mirror (format ${newer}).`, {
    exit: exitCode.usage,
    hints: [
      'Install the newer version of mirror that wrote it',
      `Start with an empty store: remove ${join(root, newer)}`,
      'Use another folder: mirror up --data DIR',
    ],
  })
}

function createRandomName(): string {
  return randomBytes(16).toString('hex')
}
