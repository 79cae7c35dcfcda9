import { signal } from '@preact/signals'
import type { RequestOutcome, RequestReport } from '../../src/admin/activity.ts'
import { cleanText, formatBytes, formatCount, formatMs, formatTime } from '../data/format.ts'
import { frozen, maxRequests, omitted, requests } from '../data/state.ts'
import { Badge, type Tone } from '../parts/pieces.tsx'

const filter = signal('')
const outcome = signal('')

const tones: Readonly<Record<RequestOutcome, Tone>> = {
  hit: 'good',
  stale: 'warn',
  miss: 'info',
  joined: 'info',
  passed: 'quiet',
  local: 'good',
  check: 'quiet',
  absent: 'quiet',
  left: 'warn',
  ok: 'quiet',
  failed: 'bad',
}

const nameOf = ({ repository = '', reference = '' }: RequestReport) => {
  const short = reference.startsWith('sha256:') ? reference.slice(0, 19) : reference
  return `${repository}${reference === '' ? '' : `${short === reference ? ':' : '@'}${short}`}`
}

export function Log() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean)
  const isPaused = frozen.value !== undefined
  const shown = (frozen.value ?? requests.value).filter((request) => {
    if (outcome.value !== '' && request.outcome !== outcome.value) return false
    if (words.length === 0) return true
    const text = Object.values(request).join('\n').toLowerCase()
    return words.every((word) => text.includes(word))
  })
  return (
    <section class="panel" aria-label="Log">
      <header>
        <h2>
          Log <small>{formatCount(shown.length)}</small>
        </h2>
        <button
          type="button"
          aria-pressed={isPaused}
          onClick={() => (frozen.value = isPaused ? undefined : requests.value)}
        >
          {isPaused ? 'Continue' : 'Pause'}
        </button>
        <select
          aria-label="Outcome"
          value={outcome.value}
          onChange={({ currentTarget }) => (outcome.value = currentTarget.value)}
        >
          <option value="">All outcomes</option>
          {Object.keys(tones).map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
        <input
          type="search"
          placeholder="Filter"
          aria-label="Filter the log"
          value={filter.value}
          onInput={({ currentTarget }) => (filter.value = currentTarget.value)}
        />
      </header>
      {shown.length === 0 ? (
        <p class="empty">
          {requests.value.length === 0 ? 'Requests appear here as they happen.' : 'No request matches.'}
        </p>
      ) : (
        <div class="scroll log" tabIndex={0} role="region" aria-label="Requests">
          <table class="rows">
            <caption class="hidden">The newest requests first, at most {maxRequests}</caption>
            <thead>
              <tr>
                <th scope="col">Time</th>
                <th scope="col">Outcome</th>
                <th scope="col">Request</th>
                <th scope="col" class="number">
                  Bytes
                </th>
                <th scope="col" class="number medium">
                  Took
                </th>
                <th scope="col" class="medium">
                  Client
                </th>
              </tr>
            </thead>
            <tbody>
              {shown.map((request) => (
                <Row key={request.id} {...request} />
              ))}
            </tbody>
          </table>
        </div>
      )}
      {omitted.value > 0 && <p class="quiet note">{formatCount(omitted.value)} more requests were too many to show.</p>}
    </section>
  )
}

function Row(request: RequestReport) {
  const { at, method, kind = '', status, outcome, cache, reason, error, bytes, ms, client, agent = '' } = request
  const tone = outcome === 'failed' && status < 500 ? 'warn' : tones[outcome]
  const detail = (outcome === 'absent' ? undefined : error) ?? reason ?? (cache === 'revalidated' ? 'checked' : '')
  return (
    <tr>
      <td>
        <time dateTime={at}>{formatTime(Date.parse(at), true)}</time>
      </td>
      <td>
        <Badge tone={tone}>{outcome === 'failed' ? String(status) : outcome}</Badge>
      </td>
      <td class="what">
        <span class="quiet">
          {method} {cleanText(kind)}
        </span>{' '}
        {cleanText(nameOf(request))} {detail !== '' && <span class="quiet">{cleanText(detail)}</span>}
      </td>
      <td class="number">{formatBytes(bytes)}</td>
      <td class="number medium">{formatMs(ms)}</td>
      <td class="medium">
        {cleanText(client)} <span class="quiet">{cleanText(agent.split(' ')[0]!.slice(0, 40))}</span>
      </td>
    </tr>
  )
}
