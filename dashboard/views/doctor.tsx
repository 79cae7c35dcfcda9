import type { CheckResult, CheckState } from '../../src/admin/activity.ts'
import { cleanText, formatAgo, formatMs } from '../data/format.ts'
import { change } from '../data/session.ts'
import { doctor, now } from '../data/state.ts'
import { run } from '../parts/dialog.tsx'
import { Action, Badge, Command, type Tone } from '../parts/pieces.tsx'

const tones: Readonly<Record<CheckState, Tone>> = { fail: 'bad', warn: 'warn', ok: 'good', skipped: 'quiet' }
const order: readonly CheckState[] = ['fail', 'warn', 'ok', 'skipped']

export function Doctor() {
  const { report, canRun = false } = doctor.value ?? {}
  const results = report?.results.toSorted((a, b) => order.indexOf(a.state) - order.indexOf(b.state)) ?? []
  return (
    <section class="panel" aria-label="Doctor">
      <header>
        <h2>Doctor</h2>
        {report && (
          <span class="quiet">
            {order.map((state) => `${report.counts[state]} ${state}`).join(', ')}; {formatAgo(report.at, now.value)},
            took {formatMs(report.durationMs)}
          </span>
        )}
        {canRun && (
          <Action
            label="Run now"
            onClick={() =>
              void run(async () => {
                await change('/api/doctor/run')
                return 'The checks have run.'
              })
            }
          />
        )}
      </header>
      {results.length === 0 ? (
        <div class="empty">
          <p>No checks have run yet. This command finds what is wrong between clients, mirror and registries:</p>
          <Command text="mirror doctor" />
        </div>
      ) : (
        <ul class="findings">
          {results.map((result) => (
            <Finding key={`${result.id} ${result.subject ?? ''}`} {...result} />
          ))}
        </ul>
      )}
    </section>
  )
}

function Finding({ id, subject, state, saw, fix, advice }: CheckResult) {
  return (
    <li class={state}>
      <Badge tone={tones[state]}>{state}</Badge>
      <div>
        <p>
          {subject !== undefined && <b>{cleanText(subject)}: </b>}
          {cleanText(saw)} <code class="quiet">{cleanText(id)}</code>
        </p>
        {fix && <Command text={fix.command} />}
        {advice !== undefined && <p>{cleanText(advice)}</p>}
      </div>
    </li>
  )
}
