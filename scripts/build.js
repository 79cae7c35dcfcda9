// Makes dist/ (declarations from tsc, JavaScript from the bundler, the schema of mirror.yaml, the manual page) and oclif.manifest.json, which describes
// the commands.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

// Check the version first: `npm ci` runs this script on every Node, and the modules below do not load on an old one.
const { problemOf, refuse } = createRequire(import.meta.url)('../bin/run.js')
const problem = problemOf(process.versions.node)
if (problem) {
  refuse(problem)
  process.exit()
}

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const manifestFile = join(root, 'oclif.manifest.json')

rmSync(join(root, 'dist'), { recursive: true, force: true })
rmSync(manifestFile, { force: true })

const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin', 'tsc')
const compiled = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], { cwd: root, stdio: 'inherit' })
if (compiled.status !== 0) process.exit(compiled.status ?? 1)

const { bundle } = await import('./bundle/bundle.js')
await bundle(root)

const { renderSchema } = await import('./bundle/render-schema.js')
writeFileSync(join(root, 'dist', 'mirror.schema.json'), await renderSchema(root))

const { Plugin } = await import('@oclif/core')
const plugin = new Plugin({ root, type: 'core', ignoreManifest: true, errorOnManifestCreate: true })
await plugin.load()
const commands = Object.entries(plugin.manifest.commands).toSorted(([a], [b]) => (a < b ? -1 : 1))
const { runSource } = await import('./bundle/run-source.js')
const { checks } = await runSource(root, 'src/doctor/checks.ts')
// The completion reads the ids of the checks here, because it loads no part of the program.
const manifest = { ...plugin.manifest, commands: Object.fromEntries(commands), checks: checks.map(({ id }) => id) }
writeFileSync(manifestFile, `${JSON.stringify(manifest, null, 2)}\n`)

const { renderManPage } = await import('./bundle/render-man-page.js')
const pjson = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
mkdirSync(join(root, 'dist', 'man'))
writeFileSync(join(root, 'dist', 'man', 'mirror.1'), await renderManPage(root, manifest, pjson))
