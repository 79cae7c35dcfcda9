import { writeFileAtomic } from '../lib/fs.ts'
import { type LogDamage, readLines } from './log.ts'

/** Stands for commits that are missing without a trace. */
const missingLine = Buffer.from('commits are missing')
const lineFeed = Buffer.from('\n')

/** Writes damaged lines to a file of their own. */
export async function writeDamage(path: string, damage: readonly LogDamage[]): Promise<void> {
  const lines = damage.map(({ bytes }) => (bytes.length > 0 ? bytes : missingLine))
  await writeFileAtomic(
    path,
    lines.flatMap((line) => [line, lineFeed]),
  )
}

/** Counts the lines of a file from `writeDamage` by their repository, `<host>/<name>`; undefined for a line that does not tell it. */
export async function countDamagedLines(path: string): Promise<Map<string | undefined, number>> {
  const counts = new Map<string | undefined, number>()
  const onRepository = ({ repository }: Pick<LogDamage, 'repository'>) =>
    void counts.set(repository, (counts.get(repository) ?? 0) + 1)
  await readLines(path, { onLine: onRepository, onDamage: onRepository, pause: () => Promise.resolve() })
  return counts
}
