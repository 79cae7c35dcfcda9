import { recognizeFile } from '../../clients/files/kinds.ts'
import { localFiles } from '../../clients/files/local.ts'
import { MirrorError, errnoOf, exitCode } from '../../lib/errors.ts'
import { shellWord } from '../../lib/process.ts'

/** Why `--file` is refused for a client that takes none, with the right command for the file where it is known. */
export async function refusedFile(client: string, file: string): Promise<MirrorError> {
  const found = recognizeFile(file, await textOf(file))
  const hint = found?.hint?.replace('FILE', shellWord(file))
  const looks = found === undefined ? '' : ` It looks like ${found.is}.`
  const own = `mirror configure ${client} --dry-run   (what would be written, and where)`
  return new MirrorError(`${client} has no file of yours to merge into, so ${file} is left alone.${looks}`, {
    exit: exitCode.usage,
    hints: hint === undefined ? [own] : [hint, own],
  })
}

/** Nothing for a file that is not there, or cannot be read. */
async function textOf(file: string): Promise<string> {
  try {
    return Buffer.from((await localFiles.read(file))?.bytes ?? []).toString()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return ''
  }
}
