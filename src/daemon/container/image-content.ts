import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { dirname, join, posix } from 'node:path'
import { nodeInImage } from '../../admin/client.ts'
import { errnoOf } from '../../lib/errors.ts'
import { isThere, writeFileAtomic } from '../../lib/fs.ts'
import { parseObject } from '../../lib/json.ts'
import type { RunCommand } from '../../lib/process.ts'
import { bytesFile, type TarEntry } from '../../lib/tar.ts'
import { packageFolder } from './spec.ts'

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
export async function computeContentDigest(content: ImageContent, memoFile: string): Promise<string> {
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
export async function* createImageEntries(content: ImageContent): AsyncGenerator<TarEntry> {
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
export function memoFilePath(stateDir: string): string {
  return join(stateDir, 'image.json')
}

/** An image from the Node of this machine: the content of its root. Undefined where ldd(1) cannot tell what Node needs. */
export async function createNodeImageContent(
  root: string,
  execPath: string,
  runCommand: RunCommand,
): Promise<ImageContent | undefined> {
  const node = await listNodeFiles(execPath, runCommand)
  if (node === undefined) return undefined
  const tree = await buildPackageTree(root)
  return {
    fingerprint: await computeFingerprint([...(await listStampedFiles(tree)), ...node]),
    files: async () => [...node, ...(await listTreeFiles(tree, packageFolder.slice(1)))],
    texts: {
      // Only these two sources of names are in the image.
      'etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\n',
      'etc/passwd': 'root:x:0:0::/:/sbin/nologin\nmirror:x:1000:1000::/data:/sbin/nologin\n',
      'etc/group': 'root:x:0:\nmirror:x:1000:\n',
    },
    folders: [{ path: 'tmp', mode: 0o1777, user: 0 }, dataEntry],
  }
}

/** What the Dockerfile builds an image from. */
export async function createBuildContext(root: string): Promise<ImageContent> {
  const tree = await buildPackageTree(root)
  const dockerfile = await readFile(join(root, 'templates', 'Dockerfile'), 'utf8')
  return {
    fingerprint: await computeFingerprint(await listStampedFiles(tree)),
    files: () => listTreeFiles(tree, 'mirror'),
    texts: { Dockerfile: dockerfile },
    folders: [dataEntry],
  }
}

/** The image that the Dockerfile starts from. */
export function parseBaseImage(dockerfile: string): string {
  return /^FROM\s+(\S+)/m.exec(dockerfile)![1]!
}

/** A new volume gets owner and mode of the image's folder. */
const dataEntry = { path: 'data', mode: 0o700, user: 1000 }

async function listTreeFiles(tree: readonly PlacedPackage[], folder: string): Promise<PlacedFile[]> {
  const files = await Promise.all(tree.map(listPackageFiles))
  return files.flat().map(({ source, path }) => ({ source, path: `${folder}/${path}` }))
}

/** Installed packages are known by their package.json; our own code is looked at file by file. */
async function listStampedFiles(tree: readonly PlacedPackage[]): Promise<PlacedFile[]> {
  const [own, ...others] = tree
  return [
    ...(await listPackageFiles(own!)),
    ...others.map(({ path, source }) => ({ path, source: join(source, 'package.json') })),
  ]
}

async function computeFingerprint(files: readonly PlacedFile[]): Promise<string> {
  const stamps = files.map(async ({ source, path }) => {
    const { size, mtimeMs, ino } = await stat(source)
    return [path, source, size, mtimeMs, ino]
  })
  return JSON.stringify(await Promise.all(stamps))
}

/** Loaded by glibc itself when a name is looked up, so no program is linked with them. nsswitch.conf(5) */
const nameServices = /^lib(nss_(files|dns)|resolv)\.so\.2$/

/**
 * A Node binary and the shared libraries it is linked with, as ldd(1) finds them, at the same paths; the paths begin below
 * the root. Undefined where there is no ldd, or it does not understand the binary.
 */
async function listNodeFiles(execPath: string, runCommand: RunCommand): Promise<PlacedFile[] | undefined> {
  const binary = await realpath(execPath)
  const listed = await runCommand('ldd', [binary], { timeoutMs: 10_000 })
  if (listed === undefined) return undefined
  const isStatic = /not a dynamic executable|statically linked/.test(listed.stdout + listed.stderr)
  if (listed.exitCode !== 0 && !isStatic) return undefined
  const libraries = new Set(listed.stdout.match(/(?<=^|\s)\/\S+(?= \(0x)/gm))
  for (const library of libraries) {
    if (!library.endsWith('/libc.so.6')) continue
    const names = (await readdir(dirname(library))).filter((name) => nameServices.test(name))
    for (const name of names) libraries.add(join(dirname(library), name))
  }
  return [
    { source: binary, path: nodeInImage.slice(1) },
    ...[...libraries].toSorted().map((path) => ({ source: path, path: path.slice(1) })),
  ]
}

/** A file of this machine, and where it goes. */
interface PlacedFile {
  /** Absolute. */
  readonly source: string
  /** Relative to the folder of the package, with `/`. */
  readonly path: string
}

/** What of our own package runs. */
const ownParts = ['package.json', 'oclif.manifest.json', 'bin', 'dist', 'templates']
/** What of a package nobody runs. */
const unusedFiles = /\.(d\.[cm]?ts|map|md|markdown|flow)$/i

/** A package in the tree that is made of it and its dependencies. */
interface PlacedPackage {
  /** Relative to the root's folder; empty for the root itself. */
  readonly path: string
  /** Where it really is. */
  readonly source: string
}

/**
 * A package and everything it depends on, wherever a package manager has put it, as a tree in which each finds its own
 * version: hoisted where the place is free, else below whoever needs it.
 */
export async function buildPackageTree(root: string): Promise<PlacedPackage[]> {
  const placed = new Map<string, string>([['', await realpath(root)]])
  const queue = ['']
  // Breadth first: what a package finds on its way up is there before it looks.
  for (let place = queue.shift(); place !== undefined; place = queue.shift()) {
    const home = placed.get(place)!
    const { dependencies = {}, optionalDependencies = {} } = await readManifest(home)
    const names = Object.keys({ ...dependencies, ...optionalDependencies }).toSorted()
    const sources = await Promise.all(names.map((name) => resolvePackage(home, name)))
    for (const [at, name] of names.entries()) {
      const source = sources[at]
      if (source === undefined) {
        if (name in optionalDependencies) continue
        throw new Error(`${name}, which ${home} depends on, is not installed`)
      }
      const found = resolveInTree(placed, place, name)
      if (found === source) continue
      const path = posix.join(found === undefined ? '' : place, 'node_modules', name)
      placed.set(path, source)
      queue.push(path)
    }
  }
  return [...placed].map(([path, source]) => ({ path, source }))
}

/** The files of a package in such a tree. */
export async function listPackageFiles({ path, source }: PlacedPackage): Promise<PlacedFile[]> {
  if (path !== '') return listFiles(source, path, (name) => !unusedFiles.test(name))
  const parts = await Promise.all(
    ownParts.map((part) => listFiles(join(source, part), part, (name) => !name.endsWith('.d.ts'))),
  )
  return parts.flat()
}

/** What a package at the place would get for the name, as Node looks for it. */
function resolveInTree(placed: ReadonlyMap<string, string>, place: string, name: string): string | undefined {
  for (let at = place; ; at = parentPath(at)) {
    const found = placed.get(posix.join(at, 'node_modules', name))
    if (found !== undefined || at === '') return found
  }
}

/** `node_modules/a/node_modules/@b/c` is in `node_modules/a`, that is in the root. */
function parentPath(place: string): string {
  const at = place.lastIndexOf('node_modules/')
  return place.slice(0, Math.max(0, at - 1))
}

/** Where the package really is that one in this folder would load. */
async function resolvePackage(home: string, name: string): Promise<string | undefined> {
  for (let folder = home; ; folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', name)
    if (await isThere(join(candidate, 'package.json'))) return realpath(candidate)
    if (dirname(folder) === folder) return undefined
  }
}

interface Manifest {
  dependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
}

async function readManifest(home: string): Promise<Manifest> {
  return JSON.parse(await readFile(join(home, 'package.json'), 'utf8')) as Manifest
}

/** A file, or all in a folder but what is installed below it. Sorted, so that the same tree makes the same list. */
async function listFiles(source: string, path: string, wanted: (path: string) => boolean): Promise<PlacedFile[]> {
  const found = await stat(source)
  if (found.isFile()) return wanted(path) ? [{ source, path }] : []
  const names = (await readdir(source)).toSorted().filter((name) => name !== 'node_modules' && name !== '.git')
  const inside = names.map((name) => listFiles(join(source, name), posix.join(path, name), wanted))
  return (await Promise.all(inside)).flat()
}
