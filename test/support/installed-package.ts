import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { findPackageRoot } from '../../src/lib/fs.ts'

const run = promisify(execFile)

export interface InstalledPackage {
  /** Path of the program, as the shell finds it. */
  readonly program: string
  readonly prefix: string
  remove(): Promise<void>
}

/** Packs the existing build as it would be published; returns the path of the tarball. */
export async function packPackage(folder: string): Promise<string> {
  const root = findPackageRoot()
  // Skip the build: it exists, and other tests run it.
  const pack = ['pack', '--ignore-scripts', '--json', '--pack-destination', folder]
  const { stdout } = await run('npm', pack, { cwd: root })
  const [{ filename }] = JSON.parse(stdout) as [{ filename: string }]
  return join(folder, filename)
}

/**
 * Installs the packed package in an empty prefix with the layout of `npm install --global --prefix`, without a registry: it links
 * the native packages of this checkout, or none. The program finds nothing else of the checkout from there.
 */
export async function installPackage({ native = true } = {}): Promise<InstalledPackage> {
  const root = findPackageRoot()
  const { name, bin, optionalDependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
    name: string
    bin: { mirror: string }
    optionalDependencies: Record<string, string>
  }
  const prefix = await mkdtemp(join(tmpdir(), 'mirror-prefix-'))
  const place = join(prefix, 'lib', 'node_modules', name)
  await mkdir(join(place, 'node_modules'), { recursive: true })
  await mkdir(join(prefix, 'bin'))
  const tarball = await packPackage(prefix)
  await run('tar', ['--extract', '--gzip', '--file', tarball, '--directory', place, '--strip-components', '1'])
  for (const dependency of native ? Object.keys(optionalDependencies) : []) {
    if (!existsSync(join(root, 'node_modules', dependency))) continue
    const link = join(place, 'node_modules', dependency)
    await mkdir(dirname(link), { recursive: true })
    await symlink(join(root, 'node_modules', dependency), link)
  }
  const program = join(prefix, 'bin', 'mirror')
  await symlink(join('..', 'lib', 'node_modules', name, bin.mirror), program)
  return { program, prefix, remove: () => rm(prefix, { recursive: true }) }
}
