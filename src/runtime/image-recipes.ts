import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { RunCommand } from '../lib/process.ts'
import { packageFolder } from '../daemon/container/spec.ts'
import type { ImageContent } from './image-content.ts'
import { nodeFiles } from './node-files.ts'
import { packageFiles, packageTree, type PackagePlace, type PlacedFile } from '../daemon/container/image-content.ts'

/** An image from the Node of this machine: the content of its root. Undefined where ldd(1) cannot tell what Node needs. */
export async function nodeImageContent(
  root: string,
  execPath: string,
  runCommand: RunCommand,
): Promise<ImageContent | undefined> {
  const node = await nodeFiles(execPath, runCommand)
  if (node === undefined) return undefined
  const tree = await packageTree(root)
  return {
    fingerprint: await fingerprintOf([...(await stampsOf(tree)), ...node]),
    files: async () => [...node, ...(await treeFiles(tree, packageFolder.slice(1)))],
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
export async function buildContext(root: string): Promise<ImageContent> {
  const tree = await packageTree(root)
  const dockerfile = await readFile(join(root, 'templates', 'Dockerfile'), 'utf8')
  return {
    fingerprint: await fingerprintOf(await stampsOf(tree)),
    files: () => treeFiles(tree, 'mirror'),
    texts: { Dockerfile: dockerfile },
    folders: [dataEntry],
  }
}

/** The image that the Dockerfile starts from. */
export function baseImage(dockerfile: string): string {
  return /^FROM\s+(\S+)/m.exec(dockerfile)![1]!
}

/** A new volume gets owner and mode of the image's folder. */
const dataEntry = { path: 'data', mode: 0o700, user: 1000 }

async function treeFiles(tree: readonly PackagePlace[], folder: string): Promise<PlacedFile[]> {
  const files = await Promise.all(tree.map(packageFiles))
  return files.flat().map(({ source, path }) => ({ source, path: `${folder}/${path}` }))
}

/** Installed packages are known by their package.json; our own code is looked at file by file. */
async function stampsOf(tree: readonly PackagePlace[]): Promise<PlacedFile[]> {
  const [own, ...others] = tree
  return [
    ...(await packageFiles(own!)),
    ...others.map(({ path, source }) => ({ path, source: join(source, 'package.json') })),
  ]
}

async function fingerprintOf(files: readonly PlacedFile[]): Promise<string> {
  const stamps = files.map(async ({ source, path }) => {
    const { size, mtimeMs, ino } = await stat(source)
    return [path, source, size, mtimeMs, ino]
  })
  return JSON.stringify(await Promise.all(stamps))
}
