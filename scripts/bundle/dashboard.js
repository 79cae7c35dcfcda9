import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { build } from 'esbuild'

/** Writes dist/dashboard/: the page and its files, named by their hashes. Returns the bundled files as paths from `root`. */
export async function bundleDashboard(root) {
  const { metafile } = await build({
    absWorkingDir: root,
    entryPoints: ['dashboard/main.tsx', 'dashboard/styles/index.css', 'dashboard/icon.svg'],
    outdir: 'dist/dashboard/assets',
    entryNames: '[name]-[hash]',
    loader: { '.svg': 'copy' },
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    target: ['es2023', 'chrome123', 'firefox120', 'safari17.5'],
    jsx: 'automatic',
    jsxImportSource: 'preact',
    legalComments: 'none',
    logLevel: 'warning',
    metafile: true,
  })
  const names = new Map(
    Object.entries(metafile.outputs).map(([file, { entryPoint, inputs }]) => [
      basename(entryPoint ?? Object.keys(inputs)[0]),
      basename(file),
    ]),
  )
  const toAddress = (_, name) => {
    if (!names.has(name)) throw new Error(`dashboard/index.html names ${name}, which is not built`)
    return `"/assets/${names.get(name)}"`
  }
  const page = readFileSync(join(root, 'dashboard', 'index.html'), 'utf8')
    .replaceAll(/"\/(\w+\.(?:tsx|css|svg))"/g, toAddress)
    .replaceAll(/\n\s*/g, '\n')
  mkdirSync(join(root, 'dist', 'dashboard'), { recursive: true })
  writeFileSync(join(root, 'dist', 'dashboard', 'index.html'), page)
  return Object.keys(metafile.inputs)
}
