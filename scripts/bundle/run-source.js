import { build } from 'esbuild'

/** Bundles and loads a file of src/, for what the build itself needs of it. */
export async function runSource(root, file) {
  const { outputFiles } = await build({
    absWorkingDir: root,
    entryPoints: [file],
    bundle: true,
    format: 'esm',
    platform: 'node',
    write: false,
    logLevel: 'warning',
  })
  return import(`data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`)
}
