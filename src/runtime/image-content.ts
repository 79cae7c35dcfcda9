import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile, stat } from 'node:fs/promises'
import { join, posix } from 'node:path'
import { writeFileAtomic } from '../lib/fs.ts'
import { errnoOf } from '../lib/errors.ts'
import { parseObject } from '../lib/json.ts'
import { bytesFile, type TarEntry } from '../lib/tar.ts'
import type { PlacedFile } from '../daemon/container/image-content.ts'

/** What an image is made of. */
export interface ImageContent {
  /** Says which files there are and how they are, at a glance: another text whenever one of them may have changed. */
  readonly fingerprint: string
  /** Files of this machine; paths from the archive's root. */
  files(): Promise<PlacedFile[]>
  /** Files that are written for the image. */
  readonly texts: Readonly<Record<string, string>>
  readonly folders: readonly { readonly path: string; readonly mode: number; readonly user: number }[]
}

/** A digest over paths and bytes, hex. Hashing 100 MB takes a moment, so it is noted in `memoFile` by fingerprint. */
export async function contentDigest(content: ImageContent, memoFile: string): Promise<string> {
  const made = JSON.stringify([content.texts, content.folders])
  const key = createHash('sha256').update(made).update(content.fingerprint).digest('hex')
  const memo = await readMemo(memoFile)
  const known = memo[key]
  if (typeof known === 'string') return known

  const whole = createHash('sha256').update(made)
  for (const { source, path } of await content.files()) {
    const one = createHash('sha256')
    for await (const chunk of createReadStream(source)) one.update(chunk as Buffer)
    whole.update(`${path}\0${one.digest('hex')}\n`)
  }
  const digest = whole.digest('hex')
  // There are two ways to make an image; older notes are of no use.
  const kept = Object.entries(memo).slice(-3)
  await writeFileAtomic(memoFile, JSON.stringify(Object.fromEntries([...kept, [key, digest]])))
  return digest
}

/** The content as entries of a tar archive, each folder before what is in it. */
export async function* imageEntries(content: ImageContent): AsyncGenerator<TarEntry> {
  const { texts, folders } = content
  const made = new Set<string>()
  for (const { path, mode, user } of folders) {
    made.add(path)
    yield { path, mode, uid: user, gid: user, content: { kind: 'folder' } }
  }
  const parentsOf = function* (path: string): Generator<TarEntry> {
    const folder = posix.dirname(path)
    if (folder === '.' || made.has(folder)) return
    yield* parentsOf(folder)
    made.add(folder)
    yield { path: folder, mode: 0o755, content: { kind: 'folder' } }
  }
  for (const [path, text] of Object.entries(texts)) {
    yield* parentsOf(path)
    yield { path, mode: 0o644, content: bytesFile(text) }
  }
  for (const { source, path } of await content.files()) {
    yield* parentsOf(path)
    const { size, mode } = await stat(source)
    // The image's user is another one than who installed the package.
    const readable = mode & 0o111 ? 0o755 : 0o644
    yield { path, mode: readable, content: { kind: 'file', size, read: () => createReadStream(source) } }
  }
}

async function readMemo(path: string): Promise<Record<string, unknown>> {
  try {
    return parseObject(await readFile(path, 'utf8')) ?? {}
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return {}
    throw error
  }
}

/** Where the digest of an image's content is noted. */
export function memoFileIn(stateDir: string): string {
  return join(stateDir, 'image.json')
}
