import { build } from 'esbuild'

/** Returns the JSON schema of mirror.yaml, which editors use. */
export async function renderSchema(root) {
  const { outputFiles } = await build({
    absWorkingDir: root,
    entryPoints: ['src/config/json-schema.ts'],
    bundle: true,
    format: 'esm',
    platform: 'node',
    write: false,
    logLevel: 'warning',
  })
  const { renderConfigSchema } = await import(`data:text/javascript,${encodeURIComponent(outputFiles[0].text)}`)
  return renderConfigSchema()
}
