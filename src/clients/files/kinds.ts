import { basename } from 'node:path'
import { type Document, parseAllDocuments } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { shellWord } from '../../lib/process.ts'
import { knownTables } from '../known-tables.ts'
import { tableOf, type TomlTable, tryToml } from '../read-toml.ts'
import { type FileKind, knownDocuments, knownNames, type RecognizedFile } from './known.ts'

/** What a file is; undefined when nothing in it tells. */
export function recognizeFile(path: string, content: string): RecognizedFile | undefined {
  const byName = knownNames.find(([name]) => name.test(basename(path)))
  if (byName) return byName[1]
  const toml = tryToml(content)
  if (toml !== undefined) return knownTables.find((rule) => rule.fits(toml))
  const all = documentsIn(content)
  // The first document may be a comment, or something small beside the one that matters.
  return all.map((one) => knownDocuments.find((rule) => rule.fits(one))).find((rule) => rule !== undefined)
}

/** What a file should be. */
export interface ExpectedFile {
  readonly kinds: readonly FileKind[]
  /** `a buildkitd.toml` */
  readonly expected: string
}

/**
 * Throws a MirrorError (usage) for a file that is plainly another program's: what it looks like, and the command for it. Returns
 * whether it is plainly of the kind that is expected.
 */
export function refuseOtherKinds(path: string, content: string, { kinds, expected }: ExpectedFile): boolean {
  const found = recognizeFile(path, content)
  if (found !== undefined && (found.kind === undefined || !kinds.includes(found.kind)))
    throw otherKind(path, found, expected)
  return found !== undefined
}

/**
 * Throws a MirrorError (usage) for a file that sets something, and nothing of what its program knows, or mostly other things:
 * many programs have a `log`.
 */
export function refuseUnknownKeys(
  path: string,
  content: unknown,
  { expected, keys }: Pick<ExpectedFile, 'expected'> & { readonly keys: ReadonlySet<string> },
): void {
  const there = Object.keys(tableOf(content) ?? {})
  const unknown = there.filter((key) => !keys.has(key))
  if (unknown.length <= there.length - unknown.length) return
  const listed = unknown.slice(0, 5).join(', ')
  const why =
    unknown.length === there.length
      ? `it sets nothing but ${listed}`
      : `most of what it sets is unknown there: ${listed}`
  throw new MirrorError(`${path} is not ${expected}, so it is left alone: ${why}.`, {
    exit: exitCode.usage,
    hints: [`give ${expected} by --file`],
  })
}

/** The refusal (usage) of a file that is another program's. */
function otherKind(path: string, { is, hint }: RecognizedFile, expected: string): MirrorError {
  return new MirrorError(`${path} looks like ${is}, not like ${expected}. It is left alone.`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [] : [hint.replace('FILE', shellWord(path))],
  })
}

/** The maps in it; none for what is not valid. */
function documentsIn(content: string): TomlTable[] {
  const parsed = parseAllDocuments(content, { prettyErrors: false, merge: true })
  if (!Array.isArray(parsed)) return []
  return parsed.flatMap((one) => {
    const map = one.errors.length > 0 ? undefined : tableOf(plain(one))
    return map === undefined ? [] : [map]
  })
}

function plain(document: Document.Parsed): unknown {
  try {
    return document.toJS()
  } catch (error) {
    // Aliases without an anchor, or without end.
    if (error instanceof ReferenceError) return undefined
    throw error
  }
}
