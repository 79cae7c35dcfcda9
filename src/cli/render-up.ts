import type { UpPlan, UpReport } from '../app/up-mirror.ts'
import type { Endpoints } from '../runtime/runtime.ts'
import type { Paint } from './paint.ts'

/** What `up` has done: that the mirror is up, and where. */
export function renderUp({ outcome, changed, pid, version, endpoints }: UpReport, paint: Paint): string {
  const said = {
    started: `mirror ${version} is up (pid ${pid})`,
    replaced: `mirror ${version} is up (pid ${pid}), in place of the one before: ${reason(changed)}`,
    'already-up': `mirror ${version} is up already (pid ${pid}), with this very configuration`,
  }
  return [`${paint.green('●')} ${paint.bold(said[outcome])}`, ...endpointLines(endpoints)].join('\n')
}

/** What `up` would do. */
export function renderUpPlan({ action, changed, running, config }: UpPlan): string {
  const addresses = config.cache.listen.map(({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`)
  if (action === 'nothing')
    return `Nothing: the mirror is up already (pid ${running!.pid}), with this very configuration.`
  if (action === 'start') return `Would start a mirror, with its cache on ${addresses.join(', ')}.`
  return `Would replace the running mirror (pid ${running!.pid}): ${reason(changed)}.`
}

/** What to do with a mirror that is up. */
export function nextSteps({ cache }: Endpoints): string {
  const address = (cache[0] ?? 'http://127.0.0.1:5055').replace(/^https?:\/\//, '')
  return [
    '',
    `Try:   docker pull ${address}/docker.io/library/alpine`,
    'Then:  mirror status     what it holds and saves',
    '       mirror logs -f    what it does',
  ].join('\n')
}

function endpointLines({ cache, networks, registry, admin }: Endpoints): string[] {
  return [
    ...cache.map((url) => `  cache     ${url}`),
    ...Object.entries(networks).map(([name, url]) => `            ${url} (network ${name})`),
    ...registry.map((url) => `  registry  ${url}`),
    ...admin.map((url) => `  admin     ${url}`),
  ]
}

function reason(changed: readonly string[]): string {
  if (changed.includes('unreachable')) return 'it did not answer any more'
  return `changed: ${changed.join(', ')}`
}
