/**
 * Describes one entry of a tar archive. A pax header carries paths (of more than about 255 bytes) and ids that do not fit the ustar
 * header.
 */
export interface TarEntry {
  /** Holds a relative path with `/`. */
  readonly path: string
  /** Holds the permissions without the file type: 0o644. */
  readonly mode: number
  readonly uid?: number
  readonly gid?: number
  readonly content: TarFolder | TarLink | TarFile
}
interface TarFolder {
  readonly kind: 'folder'
}
interface TarLink {
  readonly kind: 'link'
  readonly target: string
}
/** Describes a file; `read` must yield exactly `size` bytes. */
interface TarFile {
  readonly kind: 'file'
  readonly size: number
  read(): AsyncIterable<Uint8Array> | Iterable<Uint8Array>
}

/** Creates the content of a file from bytes in memory. */
export function toTarFile(content: string | Uint8Array): TarFile {
  const bytes = typeof content === 'string' ? Buffer.from(content) : content
  return { kind: 'file', size: bytes.length, read: () => [bytes] }
}

const blockBytes = 512
/** Is the largest uid or gid that fits its field of the header. */
const maxHeaderId = 0o7777777
const typeFlag = { file: '0', link: '2', folder: '5', extended: 'x' } as const

/**
 * Writes a tar archive (POSIX ustar, pax for what does not fit) piece by piece. Equal entries yield equal bytes: every mtime is 0.
 * Throws when a file's content has another size than announced. pax(1); docs/decisions/0024-our-own-tar-writer.md
 */
export async function* streamTar(entries: Iterable<TarEntry> | AsyncIterable<TarEntry>): AsyncGenerator<Uint8Array> {
  for await (const entry of entries) {
    const { content, uid = 0, gid = 0 } = entry
    const path = content.kind === 'folder' ? `${entry.path.replace(/\/$/, '')}/` : entry.path
    const target = content.kind === 'link' ? content.target : ''
    const split = splitPath(path)
    const hasLargeId = Math.max(uid, gid) > maxHeaderId
    if (split === undefined || Buffer.byteLength(target) > 100 || hasLargeId) {
      const records = Buffer.from(
        createPaxRecord('path', path) +
          (target === '' ? '' : createPaxRecord('linkpath', target)) +
          (hasLargeId ? createPaxRecord('uid', `${uid}`) + createPaxRecord('gid', `${gid}`) : ''),
      )
      yield createHeader({ name: 'pax', prefix: '', target: '', entry, size: records.length, type: typeFlag.extended })
      yield records
      yield createPadding(records.length)
    }
    const size = content.kind === 'file' ? content.size : 0
    const { name, prefix } = split ?? { name: path.slice(0, 90), prefix: '' }
    yield createHeader({ name, prefix, target: target.slice(0, 100), entry, size, type: typeFlag[content.kind] })
    if (content.kind !== 'file') continue
    let written = 0
    for await (const chunk of content.read()) {
      written += chunk.length
      yield chunk
    }
    if (written !== size) throw new Error(`${path} has ${written} bytes, not the ${size} that were announced`)
    yield createPadding(size)
  }
  yield new Uint8Array(2 * blockBytes)
}

/** Creates a tar archive in memory. */
export async function createTar(entries: Iterable<TarEntry>): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of streamTar(entries)) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** Creates a tar archive of one file with mode 0644, synchronously; `path`: at most 100 bytes. */
export function createSingleFileTar(path: string, content: Uint8Array): Uint8Array {
  const entry = { path, mode: 0o644, content: toTarFile(content) }
  const head = createHeader({ name: path, prefix: '', target: '', entry, size: content.length, type: typeFlag.file })
  return Buffer.concat([head, content, createPadding(content.length), new Uint8Array(2 * blockBytes)])
}

interface HeaderFields {
  name: string
  prefix: string
  target: string
  entry: TarEntry
  size: number
  type: string
}

function createHeader({ name, prefix, target, entry, size, type }: HeaderFields): Buffer {
  const { uid = 0, gid = 0 } = entry
  const block = Buffer.alloc(blockBytes)
  const octal = (value: number, at: number, length: number) =>
    block.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at)
  block.write(name, 0)
  octal(entry.mode, 100, 8)
  // A larger id is in the pax header.
  octal(uid > maxHeaderId ? 0 : uid, 108, 8)
  octal(gid > maxHeaderId ? 0 : gid, 116, 8)
  octal(size, 124, 12)
  octal(0, 136, 12)
  block.write(' '.repeat(8), 148)
  block.write(type, 156)
  block.write(target, 157)
  block.write('ustar\u000000', 257)
  block.write(prefix, 345)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

/** Splits a path into the two ustar fields; undefined for a path that does not fit. */
function splitPath(path: string): { name: string; prefix: string } | undefined {
  if (Buffer.byteLength(path) <= 100) return { name: path, prefix: '' }
  for (let at = path.indexOf('/'); at !== -1; at = path.indexOf('/', at + 1)) {
    const [prefix, name] = [path.slice(0, at), path.slice(at + 1)]
    if (name !== '' && Buffer.byteLength(name) <= 100)
      return Buffer.byteLength(prefix) <= 155 ? { name, prefix } : undefined
  }
  return undefined
}

/** Creates a pax record, which begins with its own length: `27 path=…\n`. */
function createPaxRecord(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  const bytes = Buffer.byteLength(rest)
  let length = bytes + 1
  while (String(length).length + bytes !== length) length += 1
  return `${length}${rest}`
}

function createPadding(size: number): Uint8Array {
  return new Uint8Array((blockBytes - (size % blockBytes)) % blockBytes)
}
