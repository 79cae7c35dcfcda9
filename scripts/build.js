// Compiles src to dist and writes oclif.manifest.json, which spares every start of the program the look into dist/commands.
import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const manifestFile = join(root, 'oclif.manifest.json')

rmSync(join(root, 'dist'), { recursive: true, force: true })
rmSync(manifestFile, { force: true })

const tsc = join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin', 'tsc')
const compiled = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], { cwd: root, stdio: 'inherit' })
if (compiled.status !== 0) process.exit(compiled.status ?? 1)

const { Plugin } = await import('@oclif/core')
const plugin = new Plugin({ root, type: 'core', ignoreManifest: true })
await plugin.load()
writeFileSync(manifestFile, `${JSON.stringify(plugin.manifest, null, 2)}\n`)
