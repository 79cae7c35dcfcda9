import type { ComponentChildren } from 'preact'
import type { UpstreamReport } from '../../src/admin/api.ts'
import { formatAgo, formatBytes, formatCount, formatDay, formatShare, formatTime } from '../data/format.ts'
import { now, status, summary } from '../data/state.ts'

interface TileProps {
  readonly label: string
  readonly value: string
  readonly unit?: string | undefined
  /** Shows a bar of a value against its limit. */
  readonly meter?: { readonly value: number; readonly max: number; readonly isTight: boolean } | undefined
  readonly children: ComponentChildren
}

function Tile({ label, value, unit, meter, children }: TileProps) {
  return (
    <div class="tile">
      <dt>{label}</dt>
      <dd>
        <strong>
          {value} {unit !== undefined && <small>{unit}</small>}
        </strong>
        {meter && (
          <progress
            class={meter.isTight ? 'warn' : ''}
            value={meter.value}
            max={meter.max}
            aria-label={`${label}: ${value}`}
          />
        )}
        <span>{children}</span>
      </dd>
    </div>
  )
}

export function Tiles() {
  const known = summary.value
  if (!known) return null
  const { cache, today, storage } = known
  const hub = known.upstreams['docker.io']
  const [saved, savedUnit] = formatBytes(today.bytesSaved).split(' ')
  const [disk, diskUnit] = formatBytes(storage.bytes).split(' ')
  const since = status.value ? ` since ${formatDay(Date.parse(status.value.since))}` : ''
  const isLimited = storage.maxBytes > 0
  return (
    <dl class="tiles">
      <Tile label="Pulls today" value={formatCount(today.pulls)}>
        {formatCount(cache.pulls)} in all{since}
      </Tile>
      <Tile label="Saved today" value={saved!} unit={savedUnit}>
        {formatBytes(cache.bytesSaved)} in all, of {formatBytes(cache.bytesServed)} served
      </Tile>
      <Tile label="Hit ratio today" value={formatShare(today.hits, today.hits + today.misses)}>
        {formatCount(today.hits)} hits, {formatCount(today.misses)} misses;{' '}
        {formatShare(cache.hits, cache.hits + cache.misses)} in all
      </Tile>
      {hub && (hub.rateLimit ?? hub.pullsAvoided) !== undefined && <HubTile hub={hub} />}
      <Tile
        label="Disk"
        value={disk!}
        unit={isLimited ? `${diskUnit} of ${formatBytes(storage.maxBytes)}` : diskUnit}
        meter={
          isLimited
            ? { value: storage.bytes, max: storage.maxBytes, isTight: storage.bytes > storage.maxBytes * 0.95 }
            : undefined
        }
      >
        {formatCount(storage.blobs)} {storage.blobs === 1 ? 'blob' : 'blobs'}
        {isLimited ? '' : ', no limit'}
        {storage.pushedBytes > 0 && `, ${formatBytes(storage.pushedBytes)} pushed`}
        {storage.freeBytes !== undefined && `, ${formatBytes(storage.freeBytes)} free`}
      </Tile>
    </dl>
  )
}

/** Shows the quota of an upstream that is Docker Hub. */
function HubTile({ hub }: { hub: UpstreamReport }) {
  const limit = hub.rateLimit
  const avoided = hub.pullsAvoided ? `${formatCount(hub.pullsAvoided)} pulls avoided` : undefined
  if (!limit)
    return (
      <Tile label="Docker Hub quota" value="unknown">
        {avoided ?? 'Docker Hub tells it with the next pull.'}
      </Tile>
    )
  if ('unlimited' in limit)
    return (
      <Tile label="Docker Hub quota" value="unlimited">
        {avoided ?? `as of ${formatAgo(limit.at, now.value)}`}
      </Tile>
    )
  const latest = Date.parse(limit.at) + limit.windowSeconds * 1000
  const resetsAt = limit.resetsAt === undefined ? latest : Date.parse(limit.resetsAt)
  const reset = limit.remaining < limit.limit && resetsAt > now.value
  return (
    <Tile
      label="Docker Hub quota"
      value={formatCount(limit.remaining)}
      unit={`of ${formatCount(limit.limit)} left`}
      meter={{ value: limit.remaining, max: limit.limit, isTight: limit.remaining < limit.limit * 0.15 }}
    >
      {[reset && `resets ${limit.resetsAt === undefined ? 'by' : 'at'} ${formatTime(resetsAt)}`, avoided]
        .filter(Boolean)
        .join('; ') || `as of ${formatAgo(limit.at, now.value)}`}
    </Tile>
  )
}
