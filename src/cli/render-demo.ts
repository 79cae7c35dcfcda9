import type { DemoPull, DemoStep, DemoStory } from '../app/demo/run-demo.ts'
import { formatBytes, formatDuration } from '../lib/units.ts'
import type { Paint } from './paint.ts'

const barWidth = 30
/** Milliseconds that fill the bar: about what the first pull takes. */
const fullBar = 2000

/** What the demo's reader sees as each step ends. */
export function renderDemoStep(step: DemoStep, paint: Paint): string {
  if (step.kind === 'set-up') {
    return [
      '',
      `  ${paint.dim('an upstream')}   ${step.upstream}   ${paint.dim('made on the spot: 40 ms away, 12 MiB/s a connection')}`,
      `  ${paint.dim('a mirror')}      ${step.mirror}   ${paint.dim('in a temporary folder')}`,
      `  ${paint.dim('an image')}      ${step.image}   ${paint.dim('two platforms, four layers each')}`,
      '',
    ].join('\n')
  }
  const title = { first: 'first pull', second: 'second pull', offline: 'upstream off' }[step.which]
  const { pull } = step
  const time = formatDuration(pull.milliseconds).padStart(7)
  const coat = step.which === 'first' ? paint.yellow : paint.green
  return `  ${title.padEnd(13)} ${coat(bar(pull.milliseconds).padEnd(barWidth))} ${paint.bold(time)}   ${upstreamWork(pull)}`
}

/** The numbers that matter, and what to do with one's own clients. */
export function renderDemoEnd({ first, second }: DemoStory, paint: Paint): string {
  const faster = Math.round(first.milliseconds / second.milliseconds)
  return [
    '',
    `  ${paint.bold(`${faster} × faster`)}, ${formatBytes(first.upstreamBytes - second.upstreamBytes)} not fetched again. Every byte was checked against its digest.`,
    '',
    '  With your own clients:',
    `    mirror up`,
    `    docker pull 127.0.0.1:5055/docker.io/library/alpine:3.20    ${paint.dim('# podman, containerd and Kind: see the README')}`,
    `    mirror status`,
    '',
  ].join('\n')
}

function upstreamWork({ bytes, upstreamRequests, upstreamBytes }: DemoPull): string {
  const size = formatBytes(bytes)
  if (upstreamRequests === 0) return `hit    ${size}, nothing asked upstream`
  if (upstreamBytes === 0) return `hit    ${size}, one HEAD upstream for the tag`
  return `miss   ${size}, ${upstreamRequests} requests upstream`
}

function bar(milliseconds: number): string {
  return '█'.repeat(Math.max(1, Math.min(barWidth, Math.round((milliseconds / fullBar) * barWidth))))
}
