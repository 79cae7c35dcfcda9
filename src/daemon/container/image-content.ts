import { readdir, readFile, realpath, stat } from 'node:fs/promises'
import { dirname, join, posix } from 'node:path'
import { isThere } from '../../lib/fs.ts'

/** A file of this machine, and where it goes. */
export interface PlacedFile {
  /** Absolute. */
  readonly source: string
  /** Relative to the folder of the package, with `/`. */
  readonly path: string
}

/** What of our own package runs. */
const ownParts = ['package.json', 'oclif.manifest.json', 'bin', 'dist', 'templates']
/** What of a package nobody runs. */
const idle = /\.(d\.[cm]?ts|map|md|markdown|flow)$/i

/** A package in the tree that is made of it and its dependencies. */
export interface PackagePlace {
  /** Relative to the root's folder; empty for the root itself. */
  readonly path: string
  /** Where it really is. */
  readonly source: string
}

/**
 * A package and everything it depends on, wherever a package manager has put it, as a tree in which each finds its own
 * version: hoisted where the place is free, else below whoever needs it.
 */
export async function packageTree(root: string): Promise<PackagePlace[]> {
  const placed = new Map<string, string>([['', await realpath(root)]])
  const queue = ['']
  // Breadth first: what a package finds on its way up is there before it looks.
  for (let place = queue.shift(); place !== undefined; place = queue.shift()) {
    const home = placed.get(place)!
    const { dependencies = {}, optionalDependencies = {} } = await readManifest(home)
    const names = Object.keys({ ...dependencies, ...optionalDependencies }).toSorted()
    const sources = await Promise.all(names.map((name) => resolve(home, name)))
    for (const [at, name] of names.entries()) {
      const source = sources[at]
      if (source === undefined) {
        if (name in optionalDependencies) continue
        throw new Error(`${name}, which ${home} depends on, is not installed`)
      }
      const found = nearest(placed, place, name)
      if (found === source) continue
      const path = posix.join(found === undefined ? '' : place, 'node_modules', name)
      placed.set(path, source)
      queue.push(path)
    }
  }
  return [...placed].map(([path, source]) => ({ path, source }))
}

/** The files of a package in such a tree. */
export async function packageFiles({ path, source }: PackagePlace): Promise<PlacedFile[]> {
  if (path !== '') return filesIn(source, path, (name) => !idle.test(name))
  const parts = await Promise.all(
    ownParts.map((part) => filesIn(join(source, part), part, (name) => !name.endsWith('.d.ts'))),
  )
  return parts.flat()
}

/** What a package at the place would get for the name, as Node looks for it. */
function nearest(placed: ReadonlyMap<string, string>, place: string, name: string): string | undefined {
  for (let at = place; ; at = parentPlace(at)) {
    const found = placed.get(posix.join(at, 'node_modules', name))
    if (found !== undefined || at === '') return found
  }
}

/** `node_modules/a/node_modules/@b/c` is in `node_modules/a`, that is in the root. */
function parentPlace(place: string): string {
  const at = place.lastIndexOf('node_modules/')
  return place.slice(0, Math.max(0, at - 1))
}

/** Where the package really is that one in this folder would load. */
async function resolve(home: string, name: string): Promise<string | undefined> {
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
async function filesIn(source: string, path: string, wanted: (path: string) => boolean): Promise<PlacedFile[]> {
  const found = await stat(source)
  if (found.isFile()) return wanted(path) ? [{ source, path }] : []
  const names = (await readdir(source)).toSorted().filter((name) => name !== 'node_modules' && name !== '.git')
  const inside = names.map((name) => filesIn(join(source, name), posix.join(path, name), wanted))
  return (await Promise.all(inside)).flat()
}
