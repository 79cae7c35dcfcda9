import { readdir, realpath } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { RunCommand } from '../lib/process.ts'
import type { PlacedFile } from '../daemon/container/image-content.ts'
import { node } from '../daemon/container/spec.ts'

/** Loaded by glibc itself when a name is looked up, so no program is linked with them. nsswitch.conf(5) */
const nameServices = /^lib(nss_(files|dns)|resolv)\.so\.2$/

/**
 * A Node binary and the shared libraries it is linked with, as ldd(1) finds them, at the same paths; the paths begin below
 * the root. Undefined where there is no ldd, or it does not understand the binary.
 */
export async function nodeFiles(execPath: string, runCommand: RunCommand): Promise<PlacedFile[] | undefined> {
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
    { source: binary, path: node.slice(1) },
    ...[...libraries].toSorted().map((path) => ({ source: path, path: path.slice(1) })),
  ]
}
