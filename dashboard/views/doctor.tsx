import type { CheckGroup, CheckResult, CheckState } from '../../src/admin/activity.ts'
import { cleanText, formatAgo, formatMs } from '../data/format.ts'
import { change } from '../data/session.ts'
import { doctor, now } from '../data/state.ts'
import { run } from '../parts/dialog.tsx'
import { Action, Badge, Command, type Tone } from '../parts/pieces.tsx'

const tones: Readonly<Record<CheckState, Tone>> = { fail: 'bad', warn: 'warn', ok: 'good', skipped: 'quiet' }
const order: readonly CheckState[] = ['fail', 'warn', 'ok', 'skipped']
const groups: Readonly<Record<CheckGroup, string>> = {
  mirror: 'The mirror',
  upstreams: 'Registries',
  listeners: 'Addresses',
  clients: 'Clients',
  use: 'Use',
}

export function Doctor() {
  const { report, canRun = false } = doctor.value ?? {}
  const results = report?.results.toSorted((a, b) => order.indexOf(a.state) - order.indexOf(b.state)) ?? []
  const problems = results.filter(isProblem)
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
        {canRun && <Action label="Run now" busyLabel="Running the checks …" onClick={() => run(runChecks)} />}
      </header>
      {results.length === 0 ? (
        <div class="empty">
          <p>No checks have run yet. This command finds what is wrong between clients, mirror and registries:</p>
          <Command text="mirror doctor" />
        </div>
      ) : (
        <>
          {problems.length === 0 && <p class="empty">Nothing is wrong.</p>}
          <Findings results={problems} />
          {Object.entries(groups).map(([group, title]) => {
            const rest = results.filter((result) => result.group === group && !isProblem(result))
            return rest.length > 0 && <Group key={group} title={title} results={rest} />
          })}
        </>
      )}
    </section>
  )
}

const isProblem = ({ state }: CheckResult) => state === 'fail' || state === 'warn'

async function runChecks(): Promise<string> {
  await change('/api/doctor/run')
  return 'The checks have run.'
}

/** Shows the checks of a group that found nothing, behind their number. */
function Group({ title, results }: { title: string; results: readonly CheckResult[] }) {
  const ok = results.filter(({ state }) => state === 'ok').length
  const skipped = results.length - ok
  const counts = [...(ok > 0 ? [`${ok} ok`] : []), ...(skipped > 0 ? [`${skipped} skipped`] : [])]
  return (
    <details>
      <summary>
        {title} <span class="quiet">{counts.join(', ')}</span>
      </summary>
      <Findings results={results} />
    </details>
  )
}

function Findings({ results }: { results: readonly CheckResult[] }) {
  return (
    <ul class="findings">
      {results.map((result) => (
        <Finding key={`${result.id} ${result.subject ?? ''}`} {...result} />
      ))}
    </ul>
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
