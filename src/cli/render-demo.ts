import type { DemoPull, DemoStep, DemoStory } from '../demo/demo.ts'
import { formatBytes, formatDuration } from '../lib/units.ts'
import { wrapWords, type Word } from './terminal.ts'
import type { Coat, Paint } from './paint.ts'

const widestBar = 30
const narrowestBar = 8
/** Columns before the bar, where lines that are broken go on. */
const margin = 16
/** Columns after the bar, with the longest that is said of a pull. */
const afterBar = 52
/** Milliseconds that fill the bar: about what the first pull takes. */
const fullBar = 2000

/** What the demo's reader sees as each step ends, in so many columns; without a limit each is one line. */
export function renderDemoStep(step: DemoStep, paint: Paint, columns?: number): string {
  if (step.kind === 'set-up') {
    const line = (name: string, what: string, about: string) =>
      wrapWords(
        [{ text: `  ${name.padEnd(13)}`, coat: paint.dim }, { text: `${what}  ` }, ...wordsOf(about, paint.dim)],
        columns,
        margin,
      )
    return [
      '',
      line('an upstream', step.upstream, 'made on the spot: 40 ms away, 12 MiB/s a connection'),
      line('a mirror', step.mirror, 'in a temporary folder'),
      line('an image', step.image, 'two platforms, four layers each'),
      '',
    ].join('\n')
  }
  const title = { first: 'first pull', second: 'second pull', offline: 'upstream off' }[step.which]
  const { pull } = step
  const time = formatDuration(pull.milliseconds).padStart(7)
  const coat = step.which === 'first' ? paint.yellow : paint.green
  const barWidth = Math.max(narrowestBar, Math.min(widestBar, (columns ?? Infinity) - margin - afterBar))
  return wrapWords(
    [
      { text: `  ${title.padEnd(13)}` },
      { text: bar(pull.milliseconds, barWidth).padEnd(barWidth), coat },
      { text: `${time}  `, coat: paint.bold },
      ...upstreamWork(pull),
    ],
    columns,
    margin,
  )
}

/** The numbers that matter, and what to do with one's own clients. */
export function renderDemoEnd({ first, second }: DemoStory, paint: Paint, columns?: number): string {
  const faster = Math.round(first.milliseconds / second.milliseconds)
  const saved = formatBytes(first.upstreamBytes - second.upstreamBytes)
  const pull = '    docker pull 127.0.0.1:5055/docker.io/library/alpine:3.20'
  const others = '    # podman, containerd and Kind: see the README'
  const isWide = columns === undefined || columns >= pull.length + others.length
  return [
    '',
    wrapWords(
      [
        { text: `  ${faster} × faster,`, coat: paint.bold },
        ...wordsOf(`${saved} not fetched again. Every byte was checked against its digest.`),
      ],
      columns,
      2,
    ),
    '',
    '  With your own clients:',
    `    mirror up`,
    ...(isWide ? [pull + paint.dim(others)] : [pull, paint.dim(others)]),
    `    mirror status`,
    '',
  ].join('\n')
}

function wordsOf(text: string, coat?: Coat): Word[] {
  return text.split(' ').map((word) => (coat === undefined ? { text: word } : { text: word, coat }))
}

function upstreamWork({ bytes, upstreamRequests, upstreamBytes }: DemoPull): Word[] {
  const size = `${formatBytes(bytes)},`
  if (upstreamRequests === 0) return [{ text: 'hit   ' }, { text: size }, ...wordsOf('nothing asked upstream')]
  if (upstreamBytes === 0) return [{ text: 'hit   ' }, { text: size }, ...wordsOf('one HEAD upstream for the tag')]
  return [{ text: 'miss  ' }, { text: size }, ...wordsOf(`${upstreamRequests} requests upstream`)]
}

function bar(milliseconds: number, barWidth: number): string {
  return '█'.repeat(Math.max(1, Math.min(barWidth, Math.round((milliseconds / fullBar) * barWidth))))
}
