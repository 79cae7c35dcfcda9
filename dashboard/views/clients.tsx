import { cleanText, formatAgo, formatBytes, formatCount } from '../data/format.ts'
import { clients, now } from '../data/state.ts'
import { Badge } from '../parts/pieces.tsx'
import { Table } from '../parts/table.tsx'
import { FirstSteps } from './overview.tsx'

export function Clients() {
  if (clients.value?.length === 0) return <FirstSteps />
  return (
    <Table
      caption="Clients"
      rows={clients.value ?? []}
      keyOf={({ address, listener, product }) => `${address} ${listener} ${product}`}
      sort={-7}
      empty={<p>Reading …</p>}
      columns={[
        {
          head: 'Program',
          value: ({ product, version = '' }) => cleanText(`${product} ${version}`),
          cell: ({ product, version, headOnly }) => (
            <>
              {cleanText(product)} <span class="quiet">{cleanText(version ?? '')}</span>{' '}
              {headOnly.length > 0 && (
                <Badge
                  tone="warn"
                  hint="It asked for tags by HEAD and never sent a GET: it probably pulls from the origin."
                >
                  only HEAD: {cleanText(headOnly.join(', '))}
                </Badge>
              )}
            </>
          ),
        },
        { head: 'Address', value: ({ address }) => cleanText(address) },
        { head: 'Uses', from: 'wide', value: ({ listener }) => listener },
        { head: 'Hits', isNumber: true, value: ({ hits }) => hits, cell: ({ hits }) => formatCount(hits) },
        {
          head: 'Misses',
          isNumber: true,
          from: 'medium',
          value: ({ misses }) => misses,
          cell: ({ misses }) => formatCount(misses),
        },
        {
          head: 'Received',
          isNumber: true,
          from: 'medium',
          value: ({ bytes }) => bytes,
          cell: ({ bytes }) => formatBytes(bytes),
        },
        {
          head: 'Last seen',
          isNumber: true,
          value: ({ lastSeen }) => Date.parse(lastSeen),
          cell: ({ lastSeen }) => formatAgo(lastSeen, now.value),
        },
        {
          head: 'First seen',
          isNumber: true,
          from: 'wide',
          value: ({ firstSeen }) => Date.parse(firstSeen),
          cell: ({ firstSeen }) => formatAgo(firstSeen, now.value),
        },
      ]}
    />
  )
}
