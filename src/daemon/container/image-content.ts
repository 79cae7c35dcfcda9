import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { dirname, join, posix } from 'node:path'
import { nodeInImage } from '../../admin/client.ts'
import { getErrno } from '../../lib/errors.ts'
import { pathExists, writeFileAtomic } from '../../lib/fs.ts'
import { parseObject } from '../../lib/json.ts'
import type { RunCommand } from '../../lib/process.ts'
import { toTarFile, type TarEntry } from '../../lib/tar.ts'
import { packageFolder } from './spec.ts'

/** Describes the content of an image. */
export interface ImageContent {
  /** Identifies the files and their stamps; changes whenever a file may have changed. */
  readonly fingerprint: string
  /** Lists files of this machine, with paths from the archive's root. */
  listFiles(): Promise<PlacedFile[]>
  /** Maps paths to generated files. */
  readonly texts: Readonly<Record<string, string>>
  readonly folders: readonly { readonly path: string; readonly mode: number; readonly user: number }[]
}

/** Computes a digest over paths and bytes, hex. Hashing 100 MB takes a moment, so `memoFile` keeps the digest by fingerprint. */
export async function computeContentDigest(content: ImageContent, memoFile: string): Promise<string> {
  const generated = JSON.stringify([content.texts, content.folders])
  const key = createHash('sha256').update(generated).update(content.fingerprint).digest('hex')
  const memo = await readMemo(memoFile)
  const cached = memo[key]
  if (typeof cached === 'string') return cached

  const total = createHash('sha256').update(generated)
  for (const { source, path } of await content.listFiles()) {
    const fileHash = createHash('sha256')
    for await (const chunk of createReadStream(source)) fileHash.update(chunk as Buffer)
    total.update(`${path}\0${fileHash.digest('hex')}\n`)
  }
  const digest = total.digest('hex')
  // Drops older entries, which are useless: there are two kinds of images.
  const kept = Object.entries(memo).slice(-3)
  await writeFileAtomic(memoFile, JSON.stringify(Object.fromEntries([...kept, [key, digest]])))
  return digest
}

/** Creates the entries of a tar archive, each folder before its content. */
export async function* createImageEntries(content: ImageContent): AsyncGenerator<TarEntry> {
  const { texts, folders } = content
  const created = new Set<string>()
  for (const { path, mode, user } of folders) {
    created.add(path)
    yield { path, mode, uid: user, gid: user, content: { kind: 'folder' } }
  }
  const yieldParents = function* (path: string): Generator<TarEntry> {
    const folder = posix.dirname(path)
    if (folder === '.' || created.has(folder)) return
    yield* yieldParents(folder)
    created.add(folder)
    yield { path: folder, mode: 0o755, content: { kind: 'folder' } }
  }
  for (const [path, text] of Object.entries(texts)) {
    yield* yieldParents(path)
    yield { path, mode: 0o644, content: toTarFile(text) }
  }
  for (const { source, path } of await content.listFiles()) {
    yield* yieldParents(path)
    const { size, mode } = await stat(source)
    // Lets everyone read, because the image's user is not the user who installed the package.
    const readable = mode & 0o111 ? 0o755 : 0o644
    yield { path, mode: readable, content: { kind: 'file', size, read: () => createReadStream(source) } }
  }
}

async function readMemo(path: string): Promise<Record<string, unknown>> {
  try {
    return parseObject(await readFile(path, 'utf8')) ?? {}
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return {}
    throw error
  }
}

/** Returns the path of the file that keeps digests. */
export function getMemoFilePath(stateDir: string): string {
  return join(stateDir, 'image.json')
}

/** Creates the content of an image with the Node of this machine; undefined where ldd(1) cannot tell what Node needs. */
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
    listFiles: async () => [...node, ...(await listTreeFiles(tree, packageFolder.slice(1)))],
    texts: {
      // Names the only two sources of names in the image.
      'etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\n',
      'etc/passwd': 'root:x:0:0::/:/sbin/nologin\nmirror:x:1000:1000::/data:/sbin/nologin\n',
      'etc/group': 'root:x:0:\nmirror:x:1000:\n',
    },
    folders: [{ path: 'tmp', mode: 0o1777, user: 0 }, dataEntry],
  }
}

/** Creates the build context of the Dockerfile. */
export async function createBuildContext(root: string): Promise<ImageContent> {
  const tree = await buildPackageTree(root)
  const dockerfile = await readFile(join(root, 'templates', 'Dockerfile'), 'utf8')
  return {
    fingerprint: await computeFingerprint(await listStampedFiles(tree)),
    listFiles: () => listTreeFiles(tree, 'mirror'),
    texts: { Dockerfile: dockerfile },
    folders: [dataEntry],
  }
}

/** Returns the base image of a Dockerfile. */
export function parseBaseImage(dockerfile: string): string {
  return /^FROM\s+(\S+)/m.exec(dockerfile)![1]!
}

/** Gives owner and mode to a new volume, which takes them from this folder of the image. */
const dataEntry = { path: 'data', mode: 0o700, user: 1000 }

async function listTreeFiles(tree: readonly PlacedPackage[], folder: string): Promise<PlacedFile[]> {
  const files = await Promise.all(tree.map(listPackageFiles))
  return files.flat().map(({ source, path }) => ({ source, path: `${folder}/${path}` }))
}

/** Lists the files whose stamps identify the tree: the package.json of each dependency, and every file of the own package. */
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

/** Matches the libraries that glibc loads for name lookups, so that no program is linked with them. nsswitch.conf(5) */
const nameServices = /^lib(nss_(files|dns)|resolv)\.so\.2$/

/**
 * Lists a Node binary and the shared libraries that ldd(1) finds, at the same paths below the root; undefined where there is no
 * ldd, or it does not understand the binary.
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

/** Pairs a file of this machine with its path in the image. */
interface PlacedFile {
  /** Is an absolute path. */
  readonly source: string
  /** Is relative to the folder of the package, with `/`. */
  readonly path: string
}

/** Lists the files of the own package that the image needs. */
const ownPackageFiles = ['package.json', 'oclif.manifest.json', 'bin', 'dist', 'templates']
/** Matches files of dependencies that the image does not need. */
const unusedFiles = /\.(d\.[cm]?ts|map|md|markdown|flow)$/i

/** Places a package in the tree of the mirror's package and its dependencies. */
interface PlacedPackage {
  /** Holds the path relative to the root's folder; empty for the root. */
  readonly path: string
  /** Holds the resolved path on this machine. */
  readonly source: string
}

/**
 * Builds the tree of a package and its dependencies, wherever a package manager installed them. Each package finds its own
 * versions: hoisted where the path is free, else below the package that needs it.
 */
export async function buildPackageTree(root: string): Promise<PlacedPackage[]> {
  const placed = new Map<string, string>([['', await realpath(root)]])
  const queue = ['']
  // Goes breadth first, so that packages higher up are placed before others look for them.
  for (let treePath = queue.shift(); treePath !== undefined; treePath = queue.shift()) {
    const home = placed.get(treePath)!
    const { dependencies = {}, optionalDependencies = {} } = await readManifest(home)
    const names = Object.keys({ ...dependencies, ...optionalDependencies }).toSorted()
    const sources = await Promise.all(names.map((name) => resolvePackage(home, name)))
    for (const [at, name] of names.entries()) {
      const source = sources[at]
      if (source === undefined) {
        if (name in optionalDependencies) continue
        throw new Error(`${name}, which ${home} depends on, is not installed`)
      }
      const found = resolveInTree(placed, treePath, name)
      if (found === source) continue
      const path = posix.join(found === undefined ? '' : treePath, 'node_modules', name)
      placed.set(path, source)
      queue.push(path)
    }
  }
  return [...placed].map(([path, source]) => ({ path, source }))
}

/** Lists the files of a package in such a tree. */
export async function listPackageFiles({ path, source }: PlacedPackage): Promise<PlacedFile[]> {
  if (path !== '') return listFiles(source, path, (name) => !unusedFiles.test(name))
  const parts = await Promise.all(
    ownPackageFiles.map((part) => listFiles(join(source, part), part, (name) => !name.endsWith('.d.ts'))),
  )
  return parts.flat()
}

/** Returns what a package at the path would load by the name, as Node resolves it. */
function resolveInTree(placed: ReadonlyMap<string, string>, from: string, name: string): string | undefined {
  for (let at = from; ; at = getParentPath(at)) {
    const found = placed.get(posix.join(at, 'node_modules', name))
    if (found !== undefined || at === '') return found
  }
}

/** Returns `node_modules/a` for `node_modules/a/node_modules/@b/c`, and the empty path for that. */
function getParentPath(path: string): string {
  const at = path.lastIndexOf('node_modules/')
  return path.slice(0, Math.max(0, at - 1))
}

/** Resolves a package by the name from this folder, like Node; undefined when it is not installed. */
async function resolvePackage(home: string, name: string): Promise<string | undefined> {
  for (let folder = home; ; folder = dirname(folder)) {
    const candidate = join(folder, 'node_modules', name)
    if (await pathExists(join(candidate, 'package.json'))) return realpath(candidate)
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

/** Lists a file, or all files of a folder but its installed packages; sorted, so that the same tree gives the same list. */
async function listFiles(source: string, path: string, isIncluded: (path: string) => boolean): Promise<PlacedFile[]> {
  const found = await stat(source)
  if (found.isFile()) return isIncluded(path) ? [{ source, path }] : []
  const names = (await readdir(source)).toSorted().filter((name) => name !== 'node_modules' && name !== '.git')
  const nested = names.map((name) => listFiles(join(source, name), posix.join(path, name), isIncluded))
  return (await Promise.all(nested)).flat()
}
