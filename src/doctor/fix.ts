import type { CheckResult, DoctorReport } from '../admin/activity.ts'
import type { CommandResult, RunCommand } from '../lib/process.ts'

const timeoutMs = 120_000

/** Lists the commands that change only files of mirror, each once, in the order of their findings. */
export function listOwnFixes({ results }: Pick<DoctorReport, 'results'>): string[] {
  return [...new Set(results.flatMap(({ state, fix }) => (isFinding(state) && fix?.isOwn ? [fix.command] : [])))]
}

function isFinding(state: CheckResult['state']): boolean {
  return state === 'warn' || state === 'fail'
}

/** Describes a command that was run. */
export interface AppliedFix {
  readonly command: string
  /** Holds the output of a failed command; undefined when it succeeded. */
  readonly failed: string | undefined
}

interface FixOptions {
  readonly runCommand: RunCommand
  /** Holds the path of this package's bin/run.js. */
  readonly program: string
  /** Is called before each command. */
  readonly onStart: (command: string) => void
}

/** Runs commands of mirror, one after the other. A failed one does not stop the others. */
export async function applyFixes(
  commands: readonly string[],
  { runCommand, program, onStart }: FixOptions,
): Promise<AppliedFix[]> {
  const applied: AppliedFix[] = []
  for (const command of commands) {
    onStart(command)
    const [, ...words] = splitShellWords(command)
    const args = words[0] === 'configure' ? [...words, '--yes'] : words
    const result = await runCommand(process.execPath, [program, ...args], { timeoutMs })
    applied.push({ command, failed: describeFailedCommand(result) })
  }
  return applied
}

function describeFailedCommand(result: CommandResult | undefined): string | undefined {
  if (result?.exitCode === 0) return undefined
  return result?.stderr.trim() || result?.stdout.trim() || 'it was ended'
}

/** Splits a command line that quoteShellWord has quoted. */
function splitShellWords(line: string): string[] {
  return (line.match(/(?:'[^']*'|\\.|[^\s'\\])+/g) ?? []).map((word) =>
    word.replaceAll(/'([^']*)'|\\(.)/g, (_, quoted?: string, escaped?: string) => quoted ?? escaped ?? ''),
  )
}

/** Names the findings of the first report that the second one has no more, as `id (subject)`. */
export function listMended(before: DoctorReport, after: DoctorReport): string[] {
  const left = new Set(after.results.filter(({ state }) => isFinding(state)).map(nameResult))
  return [...new Set(before.results.filter(({ state }) => isFinding(state)).map(nameResult))].filter(
    (one) => !left.has(one),
  )
}

function nameResult({ id, subject }: CheckResult): string {
  return subject === undefined ? id : `${id} (${subject})`
}
