import { adapterOf } from '../clients/adapters.ts'
import { clientNames } from '../clients/types.ts'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'

/** With these nothing is printed that a client reads. */
const documentless = ['list', 'undo', 'check', 'json', 'file', 'help']

/**
 * What the program that waits for the stdout of `mirror configure` gets in place of a document that could not be made; undefined
 * where it waits for none. The words themselves say what was asked for, because they may be what is wrong.
 */
export async function configureRefusal(words: readonly string[], error: Error): Promise<string | undefined> {
  const hasFlag = (name: string) => words.some((word) => word === `--${name}` || word.startsWith(`--${name}=`))
  const client = clientNames.find((name) => words.includes(name))
  if (client === undefined || documentless.some(hasFlag)) return undefined
  const adapter = await adapterOf(client)
  const text = adapter.refusal?.({
    reason: redact(error.message).split('\n')[0]!,
    exit: error instanceof MirrorError ? error.exit : exitCode.failed,
    isCluster: hasFlag('cluster'),
  })
  return text?.replace(/\n$/, '')
}
