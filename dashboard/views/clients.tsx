import type { ClientReport } from '../../src/admin/activity.ts'
import { cleanText, formatAgo, formatBytes, formatCount } from '../data/format.ts'
import { clients, configured, now } from '../data/state.ts'
import { Badge } from '../parts/pieces.tsx'
import { Table } from '../parts/table.tsx'
import { FirstSteps } from './overview.tsx'

export function Clients() {
  return (
    <>
      {clients.value?.length === 0 ? <FirstSteps /> : <Seen />}
      <Configured />
    </>
  )
}

/** Shows the clients that mirror configured on this machine, also those that do not use it. */
function Configured() {
  const rows = configured.value?.clients ?? []
  if (rows.length === 0) return null
  return (
    <Table
      caption="Configured on this machine"
      rows={rows}
      keyOf={({ client, title }) => `${client} ${title}`}
      sort={1}
      isShort
      empty=""
      columns={[
        { head: 'Client', value: ({ client }) => cleanText(client) },
        { head: 'Where', value: ({ title }) => cleanText(title) },
        {
          head: 'Last seen',
          isNumber: true,
          value: ({ lastSeen }) => (lastSeen === undefined ? 0 : Date.parse(lastSeen)),
          cell: ({ lastSeen }) =>
            lastSeen === undefined ? (
              <Badge tone="quiet" hint="No such program has used the mirror since it was configured.">
                not yet
              </Badge>
            ) : (
              formatAgo(lastSeen, now.value)
            ),
        },
        {
          head: 'Since',
          isNumber: true,
          from: 'medium',
          value: ({ since }) => Date.parse(since),
          cell: ({ since }) => formatAgo(since, now.value),
        },
      ]}
    />
  )
}

/** Shows the programs that used the mirror. */
function Seen() {
  return (
    <Table
      caption="Clients"
      rows={clients.value ?? []}
      keyOf={({ address, listener, product }) => `${address} ${listener} ${product}`}
      sort={-8}
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
        {
          head: 'Address',
          value: ({ address }) => cleanText(address),
          cell: ({ address }) => <span class="address">{cleanText(address)}</span>,
        },
        {
          head: 'Configured',
          from: 'wide',
          value: (client) => describeConfigured(client),
          cell: (client) => <span title={configuredHint}>{describeConfigured(client)}</span>,
        },
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

const configuredHint = 'The clients that mirror configured on this machine and that this program may be.'

/** Describes whether mirror configured the program; a dash for one of another machine. */
function describeConfigured({ configured: names }: ClientReport): string {
  if (names === undefined) return '–'
  return names.length === 0 ? 'no' : cleanText(names.join(', '))
}
