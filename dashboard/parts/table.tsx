import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { formatCount } from '../data/format.ts'

export interface Column<Row> {
  readonly head: string
  /** Returns what the column is sorted and searched by. */
  readonly value: (row: Row) => string | number | undefined
  /** Renders the cell; default: the value. */
  readonly cell?: (row: Row) => ComponentChildren
  readonly isNumber?: boolean
  /** Names the width below which the column is hidden. */
  readonly from?: 'medium' | 'wide'
}

interface TableProps<Row> {
  readonly caption: string
  readonly rows: readonly Row[]
  readonly columns: readonly Column<Row>[]
  readonly keyOf: (row: Row) => string
  /** Sorts by this column at first; a negative number sorts downwards: `-2` is the second column. */
  readonly sort: number
  /** Shows buttons at the end of each row. */
  readonly actions?: (row: Row) => ComponentChildren
  /** Shows this beside the search. */
  readonly tools?: ComponentChildren
  /** Explains a table without rows. */
  readonly empty: ComponentChildren
  /** Is true for a short table, which needs no search. */
  readonly isShort?: boolean
}

/** Limits the rows at first, because more make each update slow. */
const pageSize = 100

/** Shows a table that can be sorted by each column and searched by any part of its texts. */
export function Table<Row>({
  caption,
  rows,
  columns,
  keyOf,
  sort: first,
  actions,
  tools,
  empty,
  isShort,
}: TableProps<Row>) {
  const sort = useSignal(first)
  const search = useSignal('')
  const limit = useSignal(pageSize)
  const column = columns[Math.abs(sort.value) - 1]!
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean)
  const found = rows.filter((row) => {
    if (words.length === 0) return true
    const text = columns
      .map(({ value }) => value(row))
      .join('\n')
      .toLowerCase()
    return words.every((word) => text.includes(word))
  })
  const sorted = found.toSorted((a, b) => compare(column.value(a), column.value(b)) * Math.sign(sort.value))
  return (
    <section class="panel" aria-label={caption}>
      <header>
        <h2>
          {caption} <small>{formatCount(rows.length)}</small>
        </h2>
        {tools}
        {!isShort && (
          <input
            type="search"
            placeholder="Search"
            aria-label={`Search ${caption}`}
            value={search.value}
            onInput={({ currentTarget }) => (search.value = currentTarget.value)}
          />
        )}
      </header>
      {rows.length === 0 ? (
        <div class="empty">{empty}</div>
      ) : (
        <div class="scroll">
          <table class="rows">
            <caption class="hidden">{caption}</caption>
            <thead>
              <tr>
                {columns.map(({ head, isNumber, from }, index) => {
                  const isSorted = Math.abs(sort.value) === index + 1
                  const direction = sort.value > 0 ? 'ascending' : 'descending'
                  return (
                    <th
                      key={head}
                      scope="col"
                      class={`${isNumber ? 'number' : ''} ${from ?? ''}`}
                      aria-sort={isSorted ? direction : undefined}
                    >
                      <button
                        type="button"
                        onClick={() => (sort.value = isSorted ? -sort.value : (index + 1) * (isNumber ? -1 : 1))}
                      >
                        {head}
                      </button>
                    </th>
                  )
                })}
                {actions && (
                  <th scope="col">
                    <span class="hidden">Actions</span>
                  </th>
                )}
              </tr>
            </thead>
            <tbody>
              {sorted.slice(0, limit.value).map((row) => (
                <tr key={keyOf(row)}>
                  {columns.map(({ head, value, cell, isNumber, from }, index) => {
                    const Cell = index === 0 ? 'th' : 'td'
                    return (
                      <Cell
                        key={head}
                        scope={index === 0 ? 'row' : undefined}
                        class={`${isNumber ? 'number' : ''} ${from ?? ''}`}
                      >
                        {cell ? cell(row) : value(row)}
                      </Cell>
                    )
                  })}
                  {actions && <td class="buttons">{actions(row)}</td>}
                </tr>
              ))}
            </tbody>
          </table>
          {found.length === 0 && <p class="empty">Nothing contains “{search.value}”.</p>}
          {found.length > limit.value && (
            <p class="more">
              <button type="button" onClick={() => (limit.value = Infinity)}>
                Show all {formatCount(found.length)}
              </button>
            </p>
          )}
        </div>
      )}
    </section>
  )
}

function compare(a: string | number = '', b: string | number = ''): number {
  if (typeof a === 'number' && typeof b === 'number') return a - b
  return String(a).localeCompare(String(b), 'en', { numeric: true })
}
