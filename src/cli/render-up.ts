import type { ContainerUpPlan } from '../app/container/container-up.ts'
import type { Dropped } from '../app/dropped.ts'
import type { MovedAddress } from '../app/moved-addresses.ts'
import type { UpPlan, UpReport } from '../app/up-mirror.ts'
import { hostOf } from '../runtime/host-of.ts'
import type { Endpoints, MirrorState } from '../runtime/runtime.ts'
import type { Paint } from './paint.ts'

/** What `up` has done: that the mirror is up, and where. */
export function renderUp(
  { outcome, changed, pid, container, engine, version, endpoints, dropped, moved }: UpReport,
  paint: Paint,
): string {
  const up = `mirror ${version} is up`
  const afar = engine === undefined ? '' : ` on ${engine}`
  const where = container === undefined ? `(pid ${pid})` : `(container ${container}${afar})`
  const said = {
    started: `${up} ${where}`,
    replaced: `${up} ${where}, in place of the one before: ${reason(changed)}`,
    connected: `${up} ${where}, as before, with other networks: ${changed.join(', ')}`,
    'already-up': `${up} already ${where}, with this very configuration`,
  }
  const lines = [`${paint.green('●')} ${paint.bold(said[outcome])}`, ...endpointLines(endpoints)]
  if (engine !== undefined)
    lines.push('  These are addresses of that machine, and of containers on it; docker uses them there.')
  const notes = [...droppedLines(dropped, 'no longer'), ...moved.map(movedLine)]
  return [...lines, ...notes.map((line) => paint.yellow(`  ${line}`))].join('\n')
}

/** What `up` would do. */
export function renderUpPlan({ action, changed, running, config, dropped }: UpPlan): string {
  const addresses = config.cache.listen.map(({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`)
  if (action === 'nothing')
    return `Nothing: the mirror is up already (pid ${running!.pid}), with this very configuration.`
  if (action === 'start') return `Would start a mirror, with its cache on ${addresses.join(', ')}.`
  const replaces = `Would replace the running mirror (${whereOf(running!)}): ${reason(changed)}.`
  return [replaces, ...droppedLines(dropped, 'then no longer')].join('\n')
}

/** What `up --runtime container` would do. */
export function renderContainerPlan(plan: ContainerUpPlan): string {
  const { action, changed, connect, disconnect, preparation, engine } = plan
  const drops = droppedLines(plan.dropped, 'then no longer').map((line) => `\n${line}`)
  const { networks, ports } = preparation.wish
  const of = engine.isElsewhere ? ` of ${hostOf(engine.endpoint)}` : ''
  const on = networks.length === 0 ? '' : `, on ${networks.join(', ')}`
  if (action === 'nothing') return 'Nothing: the mirror is up already in its container, with this very configuration.'
  if (action === 'start')
    return `Would start a mirror in a container${on}, with its cache on 127.0.0.1:${ports.cache.outside}${of}.`
  if (action === 'replace')
    return [`Would replace the running mirror by one in a new container${on}: ${reason(changed)}.`, ...drops].join('')
  const steps = [...connect.map((name) => `join ${name}`), ...disconnect.map((name) => `leave ${name}`)]
  return [`Would have the container ${steps.join(', ')}, without a restart.`, ...drops].join('')
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

function movedLine({ of, from: address, on, to }: MovedAddress): string {
  const from = on === undefined ? address : `${address} of ${on}`
  const now = to === undefined ? 'nobody answers there now' : `it is ${to} now`
  const who = of === 'cache' || of === 'registry' ? `The ${of} was at ${from}` : `Network ${of} had it at ${from}`
  return `${who}; ${now}: run mirror configure again for clients that were told`
}

/** What is taken away, and how to keep it. */
function droppedLines({ networks, credentials }: Dropped, adverb: 'no longer' | 'then no longer'): string[] {
  const flags = (name: string, values: readonly string[]) => values.map((value) => `--${name} ${value}`).join(' ')
  return [
    ...(networks.length === 0
      ? []
      : [
          `Containers on ${networks.join(', ')} ${adverb} reach it. To keep that: mirror up ${flags('network', networks)}   (or "networks" in mirror.yaml)`,
        ]),
    ...(credentials.length === 0
      ? []
      : [
          `The container ${adverb} has the credentials of ${credentials.join(', ')}. To keep them: name them all by --credentials`,
        ]),
  ]
}

function whereOf({ pid, container }: MirrorState): string {
  return container ? `container ${container.name}` : `pid ${pid}`
}

function reason(changed: readonly string[]): string {
  if (changed.includes('unreachable')) return 'it did not answer any more'
  return `changed: ${changed.join(', ')}`
}
