import { runSource } from './run-source.js'

/** Returns the JSON schema of mirror.yaml, which editors use. */
export async function renderSchema(root) {
  const { renderConfigSchema } = await runSource(root, 'src/config/json-schema.ts')
  return renderConfigSchema()
}
