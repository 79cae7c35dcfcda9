import type { DeadMirror } from '../../admin/find-mirror.ts'
import type { Endpoints, MirrorState } from '../../admin/state.ts'
import type { StaleClient, UpdatedClient } from '../../clients/stale-clients.ts'
import type { ClientName } from '../../clients/types.ts'
import type { ContainerUpPlan } from '../../daemon/container/up.ts'
import type { DroppedParts, MovedAddress, OmittedFlag, UpPlan, UpReport } from '../../daemon/up.ts'
import type { DemoPull, DemoStep, DemoStory } from '../../demo/demo.ts'
import { renderDockerHost } from '../../docker/endpoint.ts'
import { formatBytes, formatDuration } from '../../lib/units.ts'
import { type Colors, type Token, toTokens, wrapWords } from '../terminal.ts'
import { describeRegistryRights, renderAge, renderPullCommand } from './table.ts'

/** Renders the result of `up`: the state of the mirror and its addresses. `plan`: its plan, which names changes by their keys. */
export function renderUp(
  { outcome, changed, pid, container, engine, version, endpoints, registryNetworks, dropped, moved }: UpReport,
  colors: Colors,
  { changedKeys, omitted }: Pick<UpPlan, 'changedKeys' | 'omitted'> = { changedKeys: changed, omitted: [] },
): string {
  const title = `mirror ${version} is up`
  const remote = engine === undefined ? '' : ` on ${engine}`
  const where = container === undefined ? `(pid ${pid})` : `(container ${container}${remote})`
  const titles = {
    started: `${title} ${where}`,
    replaced: `${title} ${where}, restarted (${describeReason(changedKeys)})`,
    connected: `${title} ${where}, as before, networks changed: ${changed.join(', ')}`,
    'already-up': `mirror ${version} is already running ${where}; configuration unchanged`,
  }
  const lines = [
    `${colors.green('●')} ${colors.bold(titles[outcome])}`,
    ...renderEndpoints(endpoints, registryNetworks),
  ]
  if (engine !== undefined)
    lines.push('  These are addresses of that machine, and of containers on it; docker uses them there.')
  const notes = [
    ...describeDroppedParts(dropped, 'no longer', omitted),
    ...moved.map(describeMovedAddress),
    ...describeOmittedFlags(omitted, dropped),
  ]
  return [...lines, ...notes.map((line) => colors.yellow(`  ${line}`))].join('\n')
}

/** Renders the preview of `up`. */
export function renderUpPlan({ action, changedKeys, omitted, running, config, dropped }: UpPlan): string {
  const addresses = config.cache.listen.map(({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`)
  if (action === 'nothing')
    return `Nothing to do: mirror is already running (pid ${running!.pid}); configuration unchanged.`
  if (action === 'start') return `Would start a mirror, with its cache on ${addresses.join(', ')}.`
  const replaces = `Would replace the running mirror (${describeRuntime(running!)}): ${describeReason(changedKeys)}.`
  const drops = describeDroppedParts(dropped, 'then no longer', omitted)
  return [replaces, ...drops, ...describeOmittedFlags(omitted, dropped)].join('\n')
}

/** Renders the preview of `up --runtime container`. */
export function renderContainerPlan(plan: ContainerUpPlan): string {
  const { action, changed, connect, disconnect, preparation, engine } = plan
  const drops = describeDroppedParts(plan.dropped, 'then no longer').map((line) => `\n${line}`)
  const { networks, ports } = preparation.desired
  const of = engine.isRemote ? ` of ${renderDockerHost(engine.endpoint)}` : ''
  const on = networks.length === 0 ? '' : `, on ${networks.join(', ')}`
  if (action === 'nothing') return 'Nothing to do: mirror is already running in its container; configuration unchanged.'
  if (action === 'start')
    return `Would start a mirror in a container${on}, with its cache on 127.0.0.1:${ports.cache.outside}${of}.`
  if (action === 'replace')
    return [
      `Would replace the running mirror by one in a new container${on}: ${describeReason(changed)}.`,
      ...drops,
    ].join('')
  const steps = [...connect.map((name) => `join ${name}`), ...disconnect.map((name) => `leave ${name}`)]
  return [`Would have the container ${steps.join(', ')}, without a restart.`, ...drops].join('')
}

/** Describes the clients of this machine when a mirror has started. */
export interface ClientOverview {
  /** Counts the configured clients; undefined where the records cannot be read. */
  readonly configured: number | undefined
  /** Lists the clients whose program is installed; empty when one is configured. */
  readonly installed: readonly ClientName[]
  /** Lists the clients that are configured with another address. */
  readonly stale: readonly UpdatedClient[]
}

/** Renders the clients with another address, a line each. */
export function renderStale(stale: readonly UpdatedClient[], colors: Colors): string {
  return stale
    .map((client) => (client.rewritten ? describeStaleClient(client) : colors.yellow(describeStaleClient(client))))
    .map((line) => `  ${line}`)
    .join('\n')
}

/** Describes a client with another address, and how to update it. */
export function describeStaleClient({
  record: { client, title },
  of,
  from,
  to,
  why,
  mend,
  rewritten = false,
}: StaleClient & Partial<Pick<UpdatedClient, 'rewritten'>>): string {
  const who = `${client}, ${title}`
  if (rewritten) return `${who}: pointed at ${from}; its files say ${to} now.`
  if (why !== undefined) return `${who}: points at ${from}, and cannot reach the mirror now. ${why} To fix it: ${mend}`
  const what = of === 'cache' ? 'mirror' : 'registry'
  const where = to === undefined ? 'there is no registry now' : `the ${what} is at ${to} now`
  return `${who}: points at ${from}, and ${where}. To fix it: ${mend}`
}

/** Suggests the most useful next step; undefined when it was printed already, or there is none. */
export function suggestNextStep(
  { outcome, container, endpoints }: Pick<UpReport, 'outcome' | 'container' | 'endpoints'>,
  { configured, installed, stale }: ClientOverview,
): string | undefined {
  if (configured === undefined || stale.some(({ rewritten }) => !rewritten)) return undefined
  if (configured > 0)
    return outcome === 'already-up' ? undefined : 'Next:  mirror status   (what it holds, and what it saves)'
  if (container !== undefined && installed.includes('kind'))
    return 'Next:  mirror configure kind | kind create cluster --config -   (a cluster that pulls through it)'
  const step =
    installed.length > 0
      ? `mirror configure   (has ${joinNames(installed)} pull through it)`
      : 'mirror configure CLIENT   (none was found here)'
  return `Next:  ${step}\nTry:   ${renderPullCommand(endpoints, installed)}`
}

function joinNames(names: readonly string[]): string {
  return names.length < 2 ? names.join() : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`
}

function renderEndpoints(endpoints: Endpoints, rights: UpReport['registryNetworks']): string[] {
  const { cache, networks, registry, admin } = endpoints
  return [
    ...cache.map((url) => `  cache     ${url}`),
    ...Object.entries(networks).map(([name, url]) => `            ${url} (network ${name})`),
    ...registry.map((url) => `  registry  ${url}`),
    ...describeRegistryRights(endpoints, rights).map((text) => `            ${text}`),
    ...admin.map((url) => `  admin     ${url}`),
  ]
}

function describeMovedAddress({ of, from: address, on, to }: MovedAddress): string {
  const from = on === undefined ? address : `${address} of ${on}`
  const now = to === undefined ? 'nothing answers there now' : `it is ${to} now`
  const who = of === 'cache' || of === 'registry' ? `The ${of} was at ${from}` : `Network ${of} had it at ${from}`
  return `${who}; ${now}.`
}

/** Renders what the mirror no longer has, and how to keep it. */
function describeDroppedParts(
  { networks, credentials }: DroppedParts,
  adverb: 'no longer' | 'then no longer',
  omitted: readonly OmittedFlag[] = [],
): string[] {
  return [
    ...(networks.length === 0
      ? []
      : [
          `Containers on ${networks.join(', ')} ${adverb} reach it. To keep that: ${renderUpCommand(omitted, networks)}   (or "networks" in mirror.yaml)`,
        ]),
    ...(credentials.length === 0
      ? []
      : [
          `The container ${adverb} has the credentials of ${credentials.join(', ')}. To keep them: name them all by --credentials`,
        ]),
  ]
}

/** Renders which flags were not given this time, and how to keep the mirror as it was. */
function describeOmittedFlags(omitted: readonly OmittedFlag[], { networks }: DroppedParts): string[] {
  if (omitted.length === 0) return []
  const names = joinNames(omitted.map(({ name }) => name))
  const keys = omitted.flatMap(({ key }) => key ?? [])
  const lasting = keys.length === 0 ? '' : `   (or ${joinNames(keys)} in mirror.yaml, for every start)`
  return [
    `${names} ${omitted.length === 1 ? 'was' : 'were'} not given this time. To keep the mirror as it was: ${renderUpCommand(omitted, networks)}${lasting}`,
  ]
}

/** Renders the command that restores all that this start left out. */
function renderUpCommand(omitted: readonly OmittedFlag[], networks: readonly string[]): string {
  return ['mirror up', ...omitted.map(({ text }) => text), ...networks.map((name) => `--network ${name}`)].join(' ')
}

function describeRuntime({ pid, container }: MirrorState): string {
  return container ? `container ${container.name}` : `pid ${pid}`
}

function describeReason(changed: readonly string[]): string {
  if (changed.includes('unreachable')) return 'it stopped responding'
  return `changed: ${changed.join(', ')}`
}

/** Renders that no mirror runs, and how an earlier one ended that was not stopped. `now`: wall clock, ms. */
export function renderDown(died: DeadMirror | undefined, now: number): string {
  if (died === undefined) return 'mirror is not running. Start it with: mirror up'
  const steps = [
    ...(died.hasLog ? ['See why:   mirror logs'] : []),
    'Start it:  mirror up',
    ...(died.reason === 'reboot' ? ['Start it with the machine from now on:  mirror up --autostart'] : []),
    ...(died.reason === 'out-of-memory'
      ? ['Give it more memory:  mirror up --runtime container --memory 1GiB   (the default is 512MiB)']
      : []),
    ...(died.reason === 'no-engine' ? ['Ask the Docker engine:  docker info'] : []),
  ]
  return [`mirror is not running: ${describeEnd(died, now)}.`, ...steps.map((step) => `  ${step}`)].join('\n')
}

function describeEnd({ reason, pid, container, startedAt, lastSeen, exitCode }: DeadMirror, now: number): string {
  const when =
    lastSeen === undefined
      ? ''
      : ` at ${formatLocalTime(lastSeen)}, ${renderAge(Math.max(0, now - Date.parse(lastSeen)))} ago`
  const last = lastSeen === undefined ? '' : `; last seen${when}`
  switch (reason) {
    case 'died':
      return `it died and was not stopped (pid ${pid}, started at ${formatLocalTime(startedAt)}${last})`
    case 'reboot':
      return `the machine was restarted (pid ${pid}, started at ${formatLocalTime(startedAt)}${last})`
    case 'out-of-memory':
      return `its container ${container} ran out of memory${when} (exit code ${exitCode})`
    case 'exited':
      return `its container ${container} has ended${when} (exit code ${exitCode})`
    case 'removed':
      return `its container ${container} was removed`
    case 'no-engine':
      return `the Docker engine that runs its container ${container} does not answer`
  }
}

/** Formats a local time: `2026-11-21 19:01:40`. */
function formatLocalTime(iso: string): string {
  const date = new Date(iso)
  if (Number.isNaN(date.getTime())) return iso
  const monthAndDay = [date.getMonth() + 1, date.getDate()].map((part) => String(part).padStart(2, '0'))
  return `${[date.getFullYear(), ...monthAndDay].join('-')} ${date.toTimeString().slice(0, 8)}`
}

const maxBarWidth = 30
const minBarWidth = 8
/** Counts the columns before the bar; continuation lines begin there. */
const margin = 16
/** Counts the columns of the longest text after the bar. */
const afterBar = 52
/** Sets the milliseconds that fill the bar, about the time of the first pull. */
const fullBar = 2000

/** Renders a finished step of the demo. `columns`: of the terminal; undefined for no limit. */
export function renderDemoStep(step: DemoStep, colors: Colors, columns?: number): string {
  if (step.kind === 'set-up') {
    const renderLine = (name: string, what: string, about: string) =>
      wrapWords(
        [{ text: `  ${name.padEnd(13)}`, color: colors.dim }, { text: `${what}  ` }, ...toTokens(about, colors.dim)],
        columns,
        margin,
      )
    return [
      '',
      renderLine('an upstream', step.upstream, 'made on the spot: 40 ms away, 12 MiB/s a connection'),
      renderLine('a mirror', step.mirror, 'in a temporary folder'),
      renderLine('an image', step.image, 'two platforms, four layers each'),
      '',
    ].join('\n')
  }
  const title = { first: 'first pull', second: 'second pull', offline: 'upstream off' }[step.which]
  const { pull } = step
  const time = formatDuration(pull.milliseconds).padStart(7)
  const color = step.which === 'first' ? colors.yellow : colors.green
  const barWidth = Math.max(minBarWidth, Math.min(maxBarWidth, (columns ?? Infinity) - margin - afterBar))
  return wrapWords(
    [
      { text: `  ${title.padEnd(13)}` },
      { text: renderBar(pull.milliseconds, barWidth).padEnd(barWidth), color },
      { text: `${time}  `, color: colors.bold },
      ...describeUpstreamWork(pull),
    ],
    columns,
    margin,
  )
}

/** Renders the comparison at the end of the demo, and the commands for real clients. */
export function renderDemoEnd({ first, second }: DemoStory, colors: Colors, columns?: number): string {
  const faster = Math.round(first.milliseconds / second.milliseconds)
  const saved = formatBytes(first.upstreamBytes - second.upstreamBytes)
  const pull = '    docker pull 127.0.0.1:5055/docker.io/library/alpine:3.20'
  const others = '    # podman, containerd and kind: see the README'
  const isWide = columns === undefined || columns >= pull.length + others.length
  return [
    '',
    wrapWords(
      [
        { text: `  ${faster} × faster,`, color: colors.bold },
        ...toTokens(`${saved} not fetched again. Every byte was checked against its digest.`),
      ],
      columns,
      2,
    ),
    '',
    '  With your own clients:',
    `    mirror up`,
    ...(isWide ? [pull + colors.dim(others)] : [pull, colors.dim(others)]),
    `    mirror status`,
    '',
  ].join('\n')
}

function describeUpstreamWork({ bytes, upstreamRequests, upstreamBytes }: DemoPull): Token[] {
  const size = `${formatBytes(bytes)},`
  if (upstreamRequests === 0) return [{ text: 'hit   ' }, { text: size }, ...toTokens('nothing asked upstream')]
  if (upstreamBytes === 0) return [{ text: 'hit   ' }, { text: size }, ...toTokens('one HEAD upstream for the tag')]
  return [{ text: 'miss  ' }, { text: size }, ...toTokens(`${upstreamRequests} requests upstream`)]
}

function renderBar(milliseconds: number, barWidth: number): string {
  return '█'.repeat(Math.max(1, Math.min(barWidth, Math.round((milliseconds / fullBar) * barWidth))))
}
