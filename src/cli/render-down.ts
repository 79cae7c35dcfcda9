import type { DeadMirror } from '../admin/find-mirror.ts'
import { renderAge } from './render-age.ts'

/** Says that no mirror runs; of one that nobody stopped, what became of it. `now`: wall clock ms. */
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
  return [`mirror is not running: ${deathOf(died, now)}.`, ...steps.map((step) => `  ${step}`)].join('\n')
}

function deathOf({ reason, pid, container, startedAt, lastSeen, exitCode }: DeadMirror, now: number): string {
  const when =
    lastSeen === undefined
      ? ''
      : ` at ${localTime(lastSeen)}, ${renderAge(Math.max(0, now - Date.parse(lastSeen)))} ago`
  const last = lastSeen === undefined ? '' : `; last sign of life${when}`
  switch (reason) {
    case 'died':
      return `it died, nobody stopped it (pid ${pid}, started at ${localTime(startedAt)}${last})`
    case 'reboot':
      return `the machine was restarted (pid ${pid}, started at ${localTime(startedAt)}${last})`
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

/** `2026-11-21 19:01:40`, local. */
function localTime(iso: string): string {
  const date = new Date(iso)
  if (Number.isNaN(date.getTime())) return iso
  const two = [date.getMonth() + 1, date.getDate()].map((part) => String(part).padStart(2, '0'))
  return `${[date.getFullYear(), ...two].join('-')} ${date.toTimeString().slice(0, 8)}`
}
