import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { absentPackages } from './absent-packages.js'
import { fetchBuiltins } from './fetch-builtins.js'
import { inlineSources } from './inline-sources.js'
import { lazyRequires } from './lazy-requires.js'
import { noticesOf } from './notices.js'
import { pruneDeclarations } from './prune-declarations.js'
import { quietDebug } from './quiet-debug.js'

/** Writes dist/: the program, a file a command, the library, what they share, and the notices of what was taken in. */
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
    // Everything else is bundled: only native code is installed as a package (docs/decisions/0022-one-package.md).
    external: [...Object.keys(optionalDependencies), 'typescript'],
    // This entry of jsonc-parser loads its parts in a way that can be bundled; its main one does not.
    alias: { 'jsonc-parser': 'jsonc-parser/lib/esm/main.js' },
    // Bundled CommonJS asks for Node's own modules.
    banner: { js: "const require = process.getBuiltinModule('node:module').createRequire(import.meta.url);" },
    plugins: [inlineSources(root, inlined), lazyRequires, absentPackages, quietDebug],
  }
  pruneDeclarations(join(root, 'dist'), 'index.d.ts')
  const commands = readdirSync(join(root, 'src', 'commands'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .map((file) => join('src', 'commands', file))
  const program = await build({
    ...options,
    // The server under a name of its own, for bin/start.js.
    entryPoints: ['src/cli/main.ts', 'src/daemon/serve.ts', ...commands],
    inject: ['scripts/bundle/first-chunk.js'],
  })
  // On its own, so that who embeds a mirror does not load the program.
  const library = await build({ ...options, entryPoints: ['src/index.ts'] })

  const outputs = { ...program.metafile.outputs, ...library.metafile.outputs }
  for (const file of Object.keys(outputs).filter((name) => name.endsWith('.js'))) {
    const path = join(root, file)
    writeFileSync(path, fetchBuiltins(readFileSync(path, 'utf8')))
  }
  const inputs = [...Object.keys({ ...program.metafile.inputs, ...library.metafile.inputs }), ...inlined]
  writeFileSync(join(root, 'dist', 'NOTICES.txt'), noticesOf(inputs, root))
}
