import { lstat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { renderConfigSchema, schemaFileName, schemaMark } from '../config/json-schema.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ignoreMissing, readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import { parseObject } from '../lib/json.ts'

/**
 * Writes the schema of mirror.yaml beside it, for editors: its first line names the file. Replaces only a schema that mirror wrote.
 * Returns the path of the file that was written; undefined when it is right, or belongs to the user. Throws a system error.
 */
export async function writeSchema(
  configFile: string,
  { isNew }: { readonly isNew: boolean },
): Promise<string | undefined> {
  const found = await findSchemaToWrite(configFile, { isNew })
  if (found === undefined) return undefined
  await writeFileAtomic(found.file, found.text)
  return found.file
}

/** Returns what `writeSchema` would write, and where; undefined when it would write nothing. Throws a system error. */
export async function findSchemaToWrite(
  configFile: string,
  { isNew }: { readonly isNew: boolean },
): Promise<{ readonly file: string; readonly text: string } | undefined> {
  const file = join(dirname(configFile), schemaFileName)
  const found = await ignoreMissing(() => lstat(file))
  if (found === undefined ? !isNew : !found.isFile()) return undefined
  const text = renderConfigSchema()
  const old = found && (await readSmallFile(file))
  if (old === text || (old !== undefined && parseObject(old)?.['$comment'] !== schemaMark)) return undefined
  return { file, text }
}

/** Replaces the schema of an earlier version beside mirror.yaml. A folder that cannot be written keeps it: only editors read it. */
export async function refreshSchema(configFile: string): Promise<void> {
  try {
    await writeSchema(configFile, { isNew: false })
  } catch (error) {
    if (getErrno(error) === undefined && !(error instanceof MirrorError)) throw error
  }
}
