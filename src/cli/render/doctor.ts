import type { CheckResult, CheckState, DoctorReport } from '../../admin/activity.ts'
import { type Check, lateStart } from '../../doctor/checks.ts'
import { type Colorizer, type Colors, wrapText } from '../terminal.ts'
import { formatCount, renderNamedRows } from './table.ts'

interface DoctorStyle {
  readonly colors: Colors
  /** Counts the columns of the terminal; undefined for no limit. */
  readonly columns: number | undefined
  /** Shows the checks that found nothing, too. */
  readonly verbose: boolean
  /** Is false for a terminal that shows only ASCII. */
  readonly unicode: boolean
  /** Shows the skipped checks of clients, too, because the user named the clients. */
  readonly areClientsNamed?: boolean
}

const marks: Readonly<Record<CheckState, readonly [unicode: string, ascii: string]>> = {
  ok: ['✔', '+'],
  warn: ['!', '!'],
  fail: ['✖', 'x'],
  skipped: ['–', '-'],
}

/** Renders the findings by group; without any, one line that says so. */
export function renderDoctor(report: DoctorReport, style: DoctorStyle): string {
  const { results, counts } = report
  const late = results.filter(isLate).length
  const isUnchecked = counts.ok + counts.warn + counts.fail === 0
  const isShown = (one: CheckResult) =>
    isFinding(one) ||
    isLate(one) ||
    (one.state === 'skipped' && (isUnchecked || (style.areClientsNamed === true && one.group === 'clients')))
  const shown = results.filter((one) => style.verbose || isShown(one))
  const blocks = [...new Set(shown.map(({ group }) => group))].map((group) =>
    [
      style.colors.bold(group),
      ...shown.filter((one) => one.group === group).map((one) => renderResult(one, style)),
    ].join('\n'),
  )
  return [...blocks, renderSummary(counts, { total: results.length, late }, style)].join('\n\n')
}

function renderResult({ id, subject, state, saw, fix, advice }: CheckResult, style: DoctorStyle): string {
  const { colors, columns = Infinity, unicode } = style
  const [mark, ascii] = marks[state]
  const color: Colorizer = { ok: colors.green, warn: colors.yellow, fail: colors.red, skipped: colors.dim }[state]
  const about = subject === undefined || namesAll(saw, subject) ? saw : `${withoutPath(subject, saw)}: ${saw}`
  // Name the check that was skipped, because the reason alone does not tell it.
  const text = toShown(state === 'skipped' ? `${id}: ${about}` : about)
  const lines = wrapText(text, Math.max(20, columns), '    ')
  const first = `  ${color(unicode ? mark : ascii)} ${lines[0]?.trimStart() ?? ''}`
  const arrow = unicode ? '→' : '->'
  return [
    first,
    ...lines.slice(1),
    // Keep a command on one line, so that it can be copied.
    ...(fix === undefined ? [] : [`    ${arrow} ${toShown(fix.command)}`]),
    ...(advice === undefined ? [] : wrapText(toShown(advice), Math.max(20, columns), `    ${arrow} `, '      ')),
    ...(state === 'ok' || state === 'skipped' ? [] : [colors.dim(`      ${id}`)]),
  ].join('\n')
}

/** Reports whether a sentence names each part of a subject as a whole word: `docker` is no word of `dockerd`. */
function namesAll(sentence: string, subject: string): boolean {
  return subject.split(', ').every((part) => {
    const escaped = part.replaceAll(/[.*+?^${}()|[\]\\]/g, String.raw`\$&`)
    return new RegExp(String.raw`(?<![\w-])${escaped}(?![\w-])`).test(sentence)
  })
}

/** Leaves out the path at the end of a subject when the sentence names it. */
function withoutPath(subject: string, sentence: string): string {
  const parts = subject.split(', ')
  const last = parts.at(-1)!
  return parts.length > 1 && last.includes('/') && sentence.includes(last) ? parts.slice(0, -1).join(', ') : subject
}

/** Replaces control characters, because files and answers of other programs may hold some. */
function toShown(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f]/g, ' ')
}

/** Reports whether a check got no answer in time, so that nobody knows if all is well. */
function isLate({ state, saw }: CheckResult): boolean {
  return state === 'skipped' && saw.startsWith(lateStart)
}

function isFinding({ state }: CheckResult): boolean {
  return state === 'warn' || state === 'fail'
}

function renderSummary(
  counts: DoctorReport['counts'],
  { total, late }: { readonly total: number; readonly late: number },
  { colors, columns }: DoctorStyle,
): string {
  const skipped = counts.skipped === 0 ? '' : `, ${counts.skipped} skipped`
  const unfinished =
    late === 0
      ? ''
      : ` ${formatCount(late, 'check', 'checks')} had no time, so nobody knows: mirror doctor --timeout 20s`
  if (counts.ok + counts.warn + counts.fail === 0)
    return colors.yellow(
      total === 0 ? 'Nothing was checked.' : `Nothing could be checked: ${counts.skipped} skipped.${unfinished}`,
    )
  const text =
    counts.fail + counts.warn + late === 0
      ? `Everything is well: ${formatCount(total, 'check', 'checks')}${skipped}.`
      : `${formatCount(counts.fail, 'failure', 'failures')}, ${formatCount(counts.warn, 'warning', 'warnings')}, ${counts.ok} ok${skipped}.${unfinished}`
  const color = counts.fail > 0 ? colors.red : counts.warn + late > 0 ? colors.yellow : colors.green
  return color(wrapText(text, columns ?? Infinity).join('\n'))
}

/** Renders the table of all checks; in a narrow terminal each sentence below its id. */
export function renderChecks(checks: readonly Check[], colors: Colors, columns: number | undefined): string {
  const width = columns ?? Infinity
  const idWidth = Math.max(...checks.map(({ id }) => id.length))
  if (checks.some(({ what }) => idWidth + 2 + what.length > width))
    return checks.map(({ id, what }) => [id, ...wrapText(what, width, '  ')].join('\n')).join('\n')
  const titles = [{ title: 'ID' }, { title: 'WHEN ALL IS WELL' }]
  return renderNamedRows(
    titles,
    checks.map(({ id, what }) => [id, what]),
    colors,
    columns,
  )
}
