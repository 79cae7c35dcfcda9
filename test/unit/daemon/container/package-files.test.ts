import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { listPackageFiles, buildPackageTree } from '../../../../src/daemon/container/image-content.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-package-'))
})
afterEach(() => rm(folder, { recursive: true }))

async function install(at: string, manifest: object, ...files: string[]) {
  for (const [name, text] of [
    ['package.json', JSON.stringify(manifest)],
    ...files.map((file) => [file, '']),
  ] as const) {
    await mkdir(dirname(join(folder, at, name)), { recursive: true })
    await writeFile(join(folder, at, name), text)
  }
}

const root = () => join(folder, 'lib/node_modules/mirror')
const listPackagePaths = async () =>
  (await buildPackageTree(root())).map(({ path, source }) => [path, source.slice(folder.length + 1)])

test('hoisted packages are found, and each package finds its own version', async () => {
  const modules = 'lib/node_modules'
  await install(`${modules}/mirror`, { dependencies: { a: '1', b: '1' }, optionalDependencies: { absent: '1' } })
  await install(`${modules}/a`, { dependencies: { b: '2', c: '1' } })
  await install(`${modules}/a/node_modules/b`, { dependencies: { c: '1' } })
  await install(`${modules}/b`, {})
  await install(`${modules}/c`, { dependencies: { a: '1' } })
  expect(await listPackagePaths()).toEqual([
    ['', `${modules}/mirror`],
    ['node_modules/a', `${modules}/a`],
    ['node_modules/b', `${modules}/b`],
    ['node_modules/a/node_modules/b', `${modules}/a/node_modules/b`],
    ['node_modules/c', `${modules}/c`],
  ])
})

test('linked packages are found at their real paths', async () => {
  await install('lib/node_modules/mirror', { dependencies: { '@scope/a': '1' } })
  await install('store/a@1/node_modules/@scope/a', { dependencies: { b: '1' } })
  await install('store/a@1/node_modules/b', {})
  await mkdir(join(root(), 'node_modules/@scope'), { recursive: true })
  await symlink(join(folder, 'store/a@1/node_modules/@scope/a'), join(root(), 'node_modules/@scope/a'))
  expect(await listPackagePaths()).toEqual([
    ['', 'lib/node_modules/mirror'],
    ['node_modules/@scope/a', 'store/a@1/node_modules/@scope/a'],
    ['node_modules/b', 'store/a@1/node_modules/b'],
  ])
})

test('a dependency that is not installed is an error', async () => {
  await install('lib/node_modules/mirror', { dependencies: { a: '1' } })
  await expect(buildPackageTree(root())).rejects.toThrow('a, which')
})

test('the image has the published files of this package and the code of its dependencies', async () => {
  const own = ['oclif.manifest.json', 'bin/run.js', 'dist/index.js', 'templates/Dockerfile', 'src/index.ts']
  await install('lib/node_modules/mirror', {}, ...own)
  const [ownPackage] = await buildPackageTree(root())
  expect((await listPackageFiles(ownPackage!)).map(({ path }) => path)).toEqual([
    'package.json',
    'oclif.manifest.json',
    'bin/run.js',
    'dist/index.js',
    'templates/Dockerfile',
  ])
  await install('lib/node_modules/a', {}, 'index.js', 'index.d.ts', 'index.js.map', 'README.md', 'lib/addon.node')
  const files = await listPackageFiles({ path: 'node_modules/a', source: join(folder, 'lib/node_modules/a') })
  expect(files.map(({ path }) => path)).toEqual([
    'node_modules/a/index.js',
    'node_modules/a/lib/addon.node',
    'node_modules/a/package.json',
  ])
})
