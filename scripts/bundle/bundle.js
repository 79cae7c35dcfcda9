import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { absentPackages } from './absent-packages.js'
import { bundleDashboard } from './dashboard.js'
import { fetchBuiltins } from './fetch-builtins.js'
import { inlineSources } from './inline-sources.js'
import { lazyRequires } from './lazy-requires.js'
import { noticesOf } from './notices.js'
import { pruneDeclarations } from './prune-declarations.js'
import { quietDebug } from './quiet-debug.js'

/**
 * Writes dist/: the program, one file for each command, the library, their shared code, the dashboard, and the notices of bundled
 * packages.
 */
export async function bundle(root) {
  const { optionalDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const inlined = new Set()
  const options = {
    absWorkingDir: root,
    outdir: 'dist',
    outbase: 'src',
    chunkNames: 'chunks/[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    sourcemap: 'linked',
    sourcesContent: false,
    legalComments: 'none',
    logLevel: 'warning',
    metafile: true,
    // Bundle everything else: only native code is installed as a package (docs/decisions/0022-one-package.md).
    external: [...Object.keys(optionalDependencies), 'typescript'],
    // Use this entry of jsonc-parser, because the bundler cannot follow how the main entry loads its parts.
    alias: { 'jsonc-parser': 'jsonc-parser/lib/esm/main.js' },
    // Define `require`, because bundled CommonJS loads Node's own modules with it.
    banner: { js: "const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);" },
    plugins: [inlineSources(root, inlined), lazyRequires, absentPackages, quietDebug],
  }
  pruneDeclarations(join(root, 'dist'), 'index.d.ts')
  const commands = readdirSync(join(root, 'src', 'commands'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => join('src', 'commands', file))
  const program = await build({
    ...options,
    // Give the server its own file, for bin/start.js.
    entryPoints: ['src/cli/main.ts', 'src/daemon/serve.ts', ...commands],
    inject: ['scripts/bundle/first-chunk.js'],
  })
  // Build the library separately, so that a program that embeds a mirror does not load the command line.
  const library = await build({ ...options, entryPoints: ['src/index.ts'] })
  // Build the completion separately: it shares no chunk, and it is CommonJS, because a user waits for it at each press of a key, and
  // Node takes longer to start its loader of modules than to complete a line.
  const completion = await build({
    ...options,
    splitting: false,
    format: 'cjs',
    outExtension: { '.js': '.cjs' },
    define: { 'import.meta.url': 'fileUrl' },
    supported: { 'dynamic-import': false },
    banner: { js: "const fileUrl = require('node:url').pathToFileURL(__filename).href;" },
    entryPoints: ['src/cli/complete.ts'],
  })

  const results = [program, library, completion]
  const outputs = results.flatMap(({ metafile }) => Object.keys(metafile.outputs))
  for (const file of outputs.filter((name) => name.endsWith('.js'))) {
    const path = join(root, file)
    writeFileSync(path, fetchBuiltins(readFileSync(path, 'utf8')))
  }
  const page = await bundleDashboard(root)
  const inputs = [...results.flatMap(({ metafile }) => Object.keys(metafile.inputs)), ...inlined, ...page]
  writeFileSync(join(root, 'dist', 'NOTICES.txt'), noticesOf(inputs, root))
}
