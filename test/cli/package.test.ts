import { execFile } from 'node:child_process'
import { readFile, readdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { findPackageRoot } from '../../src/lib/fs.ts'
import { installPackage, type InstalledPackage } from '../support/installed-package.ts'

const run = promisify(execFile)
const root = findPackageRoot()
const readJson = async <T>(name: string) => JSON.parse(await readFile(join(root, name), 'utf8')) as T

interface Manifest {
  readonly scripts: Record<string, string>
  readonly dependencies?: Record<string, string>
  readonly optionalDependencies: Record<string, string>
  readonly devDependencies: Record<string, string>
  readonly publishConfig: object
}

interface Locked {
  readonly version?: string
  readonly integrity?: string
  readonly resolved?: string
  readonly link?: boolean
  readonly dev?: boolean
  readonly hasInstallScript?: boolean
  readonly dependencies?: Record<string, string>
  readonly optionalDependencies?: Record<string, string>
  readonly devDependencies?: Record<string, string>
}

let installed: InstalledPackage
beforeAll(async () => {
  installed = await installPackage()
})
afterAll(() => installed.remove())

const filesBelow = async (folder: string, suffix: string) =>
  (await readdir(folder, { recursive: true, encoding: 'utf8' })).filter((file) => file.endsWith(suffix)).toSorted()

describe('the package', () => {
  test('contains the program, its templates, its README and its licences, and nothing else', async () => {
    // Skip the build: it exists, and other tests run it.
    const { stdout } = await run('npm', ['pack', '--dry-run', '--ignore-scripts', '--json'], { cwd: root })
    const [{ files, size, unpackedSize }] = JSON.parse(stdout) as [
      { files: { path: string }[]; size: number; unpackedSize: number },
    ]
    const known = [
      /^(LICENSE|README\.md|package\.json|oclif\.manifest\.json)$/,
      /^bin\/(package\.json|run\.js|start\.js|compile-cache\.js)$/,
      /^dist\/(index\.js|NOTICES\.txt|mirror\.schema\.json)$/,
      /^dist\/chunks\/[\w.-]+-[A-Z0-9]{8}\.js$/,
      /^dist\/(cli\/main\.js|cli\/complete\.cjs|daemon\/serve\.js)$/,
      /^dist\/commands\/([a-z]+\/)?[a-z]+\.js$/,
      /^dist\/dashboard\/(index\.html|assets\/[a-z]+-[A-Z0-9]{8}\.(js|css|svg))$/,
      /^dist\/man\/mirror\.1$/,
      /^dist\/([a-z]+\/)*[a-z-]+\.d\.ts$/,
      /^templates\/((launchd\/|systemd\/)?[a-z0-9-]+\.[a-z]+|Caddyfile|Dockerfile)$/,
    ]
    const paths = files.map(({ path }) => path)
    expect(paths.filter((path) => !known.some((pattern) => pattern.test(path)))).toEqual([])
    for (const pattern of known) expect(paths.filter((path) => pattern.test(path)).length, `${pattern}`).not.toBe(0)
    expect(size).toBeLessThan(4e6)
    expect(unpackedSize).toBeLessThan(16e6)
  })

  test('depends on nothing but the native packages of one version of koffi, each of which may be absent', async () => {
    const { dependencies, optionalDependencies, devDependencies } = await readJson<Manifest>('package.json')
    expect(dependencies).toBeUndefined()
    for (const [name, version] of Object.entries(optionalDependencies)) {
      expect(name).toMatch(/^@koromix\/koffi-linux-/)
      expect(version).toBe(devDependencies['koffi'])
    }
    expect(devDependencies['koffi']).toMatch(/^\d+\.\d+\.\d+$/)
  })

  test('has no script that an installation runs, and is published with public access and provenance', async () => {
    const { scripts, publishConfig } = await readJson<Manifest>('package.json')
    for (const name of ['preinstall', 'install', 'postinstall', 'prepare', 'preprepare', 'postprepare'])
      expect(Object.keys(scripts)).not.toContain(name)
    expect(publishConfig).toEqual({ access: 'public', provenance: true })
  })

  test('names each bundled package with its licence in NOTICES.txt', async () => {
    const dist = join(root, 'dist')
    const texts = await Promise.all((await filesBelow(dist, '.js')).map((file) => readFile(join(dist, file), 'utf8')))
    const bundled = new Set(
      texts.flatMap((text) =>
        [...text.matchAll(/^ *\/\/ node_modules\/((?:@[^/\n]+\/)?[^/\n]+)\//gm)].map(([, name]) => name!),
      ),
    )
    const notices = (await readFile(join(dist, 'NOTICES.txt'), 'utf8')).split(`\n${'-'.repeat(80)}\n\n`)
    const named = new Map(notices.map((notice) => [notice.split(' ')[0]!, notice.split('\n').slice(1).join('\n')]))
    expect(bundled).toContain('undici')
    expect([...bundled].filter((name) => !named.has(name))).toEqual([])
    for (const [name, text] of named) expect(text, name).toMatch(/licen[cs]e|permission|copyright/i)
    // scripts/bundle/absent-packages.js leaves these packages out.
    for (const name of ['ssh2', 'protobufjs', '@grpc/grpc-js', '@grpc/proto-loader'])
      expect(bundled).not.toContain(name)
  })

  test('loads at the start of a command only what every command needs', async () => {
    const loaded = new Set<string>()
    const pending = [join(root, 'dist', 'cli', 'main.js')]
    for (const file of pending) {
      if (loaded.has(file)) continue
      loaded.add(file)
      const text = await readFile(file, 'utf8')
      for (const [, name] of text.matchAll(/^(?:import|export)\b[^'";]*["'](\.[^'"]+)["']/gm))
        pending.push(join(dirname(file), name!))
    }
    const text = (await Promise.all([...loaded].map((file) => readFile(file, 'utf8')))).join('\n')
    const builtins = new Set(
      [...text.matchAll(/^const \{.*$/gm)].flatMap(([line]) => line.match(/node:[a-z/_]+/g) ?? []),
    )
    for (const name of ['node:net', 'node:http', 'node:child_process', 'node:worker_threads'])
      expect([...builtins]).not.toContain(name)
    // The framework has half of it.
    expect(text.length).toBeLessThan(560_000)
  })

  test('has declarations that need no other package, and a program that embeds a mirror compiles with them', async () => {
    const distFolder = join(installed.prefix, 'lib', 'node_modules', 'dev-mirror', 'dist')
    for (const file of await filesBelow(distFolder, '.d.ts')) {
      const text = await readFile(join(distFolder, file), 'utf8')
      for (const [, name] of text.matchAll(/(?:from|import\()\s*['"]([^'"]+)['"]/g)) expect(name, file).toMatch(/^\./)
    }
    const folder = join(installed.prefix, 'lib')
    const program = `
      import { defaultConfig, loadConfig, MirrorError, mirrorPaths, silentLogger, startMirror } from 'dev-mirror'
      import type { Config, Logger, MirrorPaths, RunningMirror, StartOptions, StatusReport } from 'dev-mirror'
      const home: MirrorPaths = mirrorPaths({ platform: 'linux', env: {}, homedir: '/home/me', cwd: '/' })
      const config: Config = defaultConfig()
      const logger: Logger = silentLogger
      const options: StartOptions = { home, version: '1', runtime: 'process', logger }
      const mirror: RunningMirror = await startMirror(config, options)
      export const endpoints: StatusReport['endpoints'] = mirror.endpoints
      export { loadConfig, MirrorError }\n`
    await writeFile(join(folder, 'embed.mts'), program)
    const compilerOptions = {
      noEmit: true,
      strict: true,
      module: 'nodenext',
      target: 'es2023',
      skipLibCheck: false,
      lib: ['es2023', 'dom'],
      types: [],
    }
    await writeFile(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['embed.mts'] }))
    const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
    const { stdout } = await run(process.execPath, [tsc, '-p', folder]).catch(
      (error: unknown) => error as { stdout: string },
    )
    expect(stdout).toBe('')
  })
})

describe('package-lock.json', () => {
  test('pins each package by its hash and to no registry', async () => {
    const { lockfileVersion, packages } = await readJson<{ lockfileVersion: number; packages: Record<string, Locked> }>(
      'package-lock.json',
    )
    expect(lockfileVersion).toBe(3)
    for (const [packagePath, { version, integrity, resolved, link }] of Object.entries(packages)) {
      if (packagePath === '') continue
      expect({ packagePath, version, integrity, resolved, link }).toEqual({
        packagePath,
        version: expect.stringMatching(/^\d+\.\d+\.\d+/),
        integrity: expect.stringMatching(/^sha512-/),
        resolved: undefined,
        link: undefined,
      })
    }
  })

  test('matches package.json, and no package that users install runs a script', async () => {
    const { packages } = await readJson<{ packages: Record<string, Locked> }>('package-lock.json')
    const { dependencies, optionalDependencies, devDependencies } = await readJson<Manifest>('package.json')
    const own = packages['']!
    expect([own.dependencies, own.optionalDependencies, own.devDependencies]).toEqual([
      dependencies,
      optionalDependencies,
      devDependencies,
    ])
    for (const [name, range] of Object.entries({ ...optionalDependencies, ...devDependencies })) {
      const { version = '' } = packages[`node_modules/${name}`] ?? {}
      expect(range, name).toMatch(/^\^?\d+\.\d+\.\d+$/)
      expect(satisfies(version, range), `${name} ${range}: ${version}`).toBe(true)
    }
    const shipped = Object.entries(packages).filter(([packagePath, { dev }]) => packagePath !== '' && !dev)
    expect(shipped.map(([packagePath]) => packagePath.replace('node_modules/', '')).toSorted()).toEqual(
      Object.keys(optionalDependencies).toSorted(),
    )
    for (const [packagePath, { hasInstallScript }] of shipped) expect(hasInstallScript, packagePath).toBeUndefined()
  })
})

/** Reports whether a version is in a range of the form `1.2.3` or `^1.2.3`. */
function satisfies(version: string, range: string): boolean {
  if (!range.startsWith('^')) return version === range
  const [minimum, found] = [range.slice(1), version].map((text) => text.split('.').map(Number)) as [number[], number[]]
  // Compare up to the first number that is not 0, because a caret fixes it.
  const held = minimum.findIndex((number) => number !== 0)
  if (found.slice(0, held + 1).some((number, at) => number !== minimum[at])) return false
  const differing = minimum.findIndex((number, at) => number !== found[at])
  return differing === -1 || found[differing]! > minimum[differing]!
}
