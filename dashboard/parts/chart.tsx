import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { cleanText, formatDay, formatTime } from '../data/format.ts'
import { getMarks, getTimeMarks } from './marks.ts'

export interface Series {
  readonly label: string
  /** Names the colour: a class of styles.css. */
  readonly color: string
  readonly values: readonly (number | undefined)[]
}

interface ChartProps {
  readonly title: string
  /** Distinguishes `stack`: bars on top of each other; `overlap`: narrower bars in front of wider ones; `line`. */
  readonly kind: 'stack' | 'overlap' | 'line'
  /** Starts of the spans, ms. */
  readonly times: readonly number[]
  /** Length of a span, ms. */
  readonly step: number
  readonly series: readonly Series[]
  readonly format: (value: number) => string
  /** Sets the base of the marks of the value axis: 1024 for bytes. */
  readonly base?: number
  /** Combines the values of all spans into that of the legend. */
  readonly total: (values: Series['values']) => number | undefined
}

const [height, top, bottom, left, right] = [180, 8, 20, 62, 4]
const day = 86_400_000
/** Limits the values of a line that are drawn as dots, too; a single one would be invisible without. */
const maxDots = 40
/**
 * Shows a chart as SVG, with a legend that reads the values at the cursor and a table of the same numbers. SVG takes its colours from
 * the style, so that a change of the theme needs no code.
 */
export function Chart(props: ChartProps) {
  const { title, kind, times, step, series, format, total } = props
  const box = useRef<HTMLDivElement>(null)
  const width = useSignal(0)
  const cursor = useSignal<number | undefined>(undefined)
  useEffect(() => {
    const observer = new ResizeObserver(() => (width.value = box.current?.clientWidth ?? 0))
    observer.observe(box.current!)
    return () => observer.disconnect()
  }, [])

  const from = times[0] ?? 0
  const span = times.length * step
  const x = (time: number) => left + ((time - from) / span) * (width.value - left - right)
  const max = findMax(series, kind === 'stack')
  const marks = getMarks(max, props.base ?? 10)
  const ceiling = Math.max(max, marks.at(-1)!) || 1
  const y = (value: number) => height - bottom - (value / ceiling) * (height - top - bottom)

  const point = (offset: number) => {
    const index = Math.floor(((offset - left) / (width.value - left - right)) * times.length)
    cursor.value = index >= 0 && index < times.length ? index : undefined
  }
  const move = (by: number) => {
    const next = (cursor.value ?? (by > 0 ? -1 : times.length)) + by
    cursor.value = Math.min(times.length - 1, Math.max(0, next))
  }
  const at = cursor.value !== undefined && cursor.value < times.length ? cursor.value : undefined
  return (
    <figure class="panel chart">
      <figcaption>
        <h2>{title}</h2>
        <span class="quiet">{at !== undefined && formatStart(times[at]!, step)}</span>
      </figcaption>
      <ul class="legend">
        {series.map(({ label, color, values }) => {
          const value = at === undefined ? total(values) : values[at]
          return (
            <li key={label}>
              <i class={color} />
              {cleanText(label)} <b>{value === undefined ? '–' : format(value)}</b>
            </li>
          )
        })}
      </ul>
      <div
        ref={box}
        class="plot"
        tabIndex={0}
        role="group"
        aria-label={`${title}: the arrow keys read values`}
        onPointerMove={({ clientX, currentTarget }) => point(clientX - currentTarget.getBoundingClientRect().left)}
        onPointerLeave={() => (cursor.value = undefined)}
        onBlur={() => (cursor.value = undefined)}
        onKeyDown={(event) => {
          if (event.key !== 'ArrowLeft' && event.key !== 'ArrowRight') return
          event.preventDefault()
          move(event.key === 'ArrowLeft' ? -1 : 1)
        }}
      >
        <svg width={width.value} height={height} aria-hidden="true">
          {marks.map((value) => (
            <g key={value}>
              <path class="grid" d={`M${left} ${round(y(value))}H${width.value - right}`} />
              <text x={left - 6} y={y(value) + 4} text-anchor="end">
                {format(value)}
              </text>
            </g>
          ))}
          {getTimeMarks(from, span, width.value - left).map((time) => (
            <text key={time} x={x(time)} y={height - 4} text-anchor="middle">
              {formatMark(time, span)}
            </text>
          ))}
          {width.value > 0 &&
            draw(props, x, y).map(({ color, path, dots }) => (
              <g key={color} class={color}>
                <path class={kind} d={path} />
                {dots !== '' && <path class="dots" d={dots} />}
              </g>
            ))}
          {at !== undefined && (
            <path class="cursor" d={`M${round(x(times[at]! + step / 2))} ${top}V${height - bottom}`} />
          )}
        </svg>
      </div>
      <Numbers {...props} />
    </figure>
  )
}

/** Shows the numbers of a chart as a table, the newest first. */
function Numbers({ title, times, step, series, format }: ChartProps) {
  const isOpen = useSignal(false)
  return (
    <details onToggle={({ currentTarget }) => (isOpen.value = currentTarget.open)}>
      <summary>Numbers</summary>
      {isOpen.value && (
        <div class="scroll" tabIndex={0} role="region" aria-label={`${title}: numbers`}>
          <table>
            <caption class="hidden">{title}</caption>
            <thead>
              <tr>
                <th scope="col">Time</th>
                {series.map(({ label }) => (
                  <th key={label} scope="col" class="number">
                    {cleanText(label)}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {times
                .map((time, index) => ({ time, index }))
                .filter(({ index }) => series.some(({ values }) => values[index]))
                .toReversed()
                .map(({ time, index }) => (
                  <tr key={time}>
                    <th scope="row">{formatStart(time, step)}</th>
                    {series.map(({ label, values }) => (
                      <td key={label} class="number">
                        {values[index] === undefined ? '–' : format(values[index])}
                      </td>
                    ))}
                  </tr>
                ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  )
}

type Scale = (value: number) => number

/** Returns the path of each series, in the order in which they are drawn. */
function draw(
  { kind, times, step, series }: ChartProps,
  x: Scale,
  y: Scale,
): { color: string; path: string; dots: string }[] {
  const sums = times.map(() => 0)
  return series.map(({ color, values }, place) => {
    const hasDots = kind === 'line' && values.filter((value) => value !== undefined).length <= maxDots
    let path = ''
    let dots = ''
    for (const [index, value] of values.entries()) {
      if (value === undefined || (value === 0 && kind !== 'line')) continue
      const [start, end] = [x(times[index]!), x(times[index]! + step)]
      if (kind === 'line') {
        const place = `${round((start + end) / 2)} ${round(y(value))}`
        path += `${path === '' ? 'M' : 'L'}${place}`
        if (hasDots) dots += `M${place}h0`
        continue
      }
      const base = sums[index]!
      if (kind === 'stack') sums[index] = base + value
      const wide = Math.max(1, (end - start) * (kind === 'overlap' && place > 0 ? 0.4 : 0.8))
      const upper = y(base + value)
      path += `M${round((start + end - wide) / 2)} ${round(upper)}h${round(wide)}V${round(y(base))}h${round(-wide)}z`
    }
    return { color, path, dots }
  })
}

function findMax(series: readonly Series[], isStacked: boolean): number {
  const length = Math.max(0, ...series.map(({ values }) => values.length))
  const at = (index: number) => series.map(({ values }) => values[index] ?? 0)
  const combine = (values: number[]) =>
    isStacked ? values.reduce((sum, value) => sum + value, 0) : Math.max(0, ...values)
  return Array.from({ length }, (_, index) => combine(at(index))).reduce((max, value) => Math.max(max, value), 0)
}

/** Formats a mark of the time axis: the time of day, or the day at midnight and in long ranges. */
function formatMark(time: number, span: number): string {
  const text = formatTime(time)
  return span > 3 * day || text === '00:00' ? formatDay(time) : text
}

function formatStart(time: number, step: number): string {
  return step >= day ? formatDay(time) : `${formatDay(time)} ${formatTime(time)}`
}

const round = (value: number) => Math.round(value * 10) / 10
