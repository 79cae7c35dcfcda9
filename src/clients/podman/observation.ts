import { readdir, readFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { ifVisible } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import type { RunCommand } from '../../lib/process.ts'
import type { Machine, Observation, Reason } from '../types.ts'

const timeoutMs = 20_000

/** What podman itself, and the podman services that run, have for Docker Hub. `causes`: what else may explain it. */
export async function observePodman(
  { runCommand, env, platform }: Pick<Machine, 'runCommand' | 'env' | 'platform'>,
  cache: string,
  vm: string | undefined,
  causes: { readonly configure: string; readonly others: readonly Reason[] },
): Promise<Observation> {
  const { host } = new URL(cache)
  const ask = async (...how: string[]) =>
    mirrorsIn(await runCommand('podman', [...how, 'info', '--format', 'json'], { timeoutMs }))
  const own = await ask(...(vm === undefined ? [] : ['--connection', vm]))
  const services = vm === undefined && platform === 'linux' ? await runningServices(env) : []
  const asked = await Promise.all(
    services.map(async (service) => ({ ...service, mirrors: await ask('--url', `unix://${service.socket}`) })),
  )
  const has = (mirrors: readonly string[] | undefined) => mirrors?.some((one) => one.split('/', 1)[0] === host)
  const answering = asked.filter(({ mirrors }) => mirrors !== undefined)
  const stale = has(own) === true ? answering.filter(({ mirrors }) => !has(mirrors)) : []
  const inUse = has(own) === true && stale.length > 0 ? false : has(own)
  return {
    inUse,
    saw: [
      own === undefined ? 'podman info cannot be asked.' : `podman info lists ${say(own)} of docker.io.`,
      ...answering.map(({ pid, mirrors }) => `The podman service (pid ${pid}) has ${say(mirrors!)} of docker.io.`),
    ],
    reasons: [
      ...(has(own) === true
        ? [{ why: `podman did not reach ${cache}`, fix: `curl -sS ${cache}/v2/` }]
        : own === undefined
          ? [{ why: 'podman is not configured for this mirror', fix: causes.configure, isUnconfigured: true as const }]
          : [
              { why: 'podman is not configured for this mirror, or another file replaces that', fix: causes.configure },
            ]),
      ...stale.map(({ pid }) => ({
        why: `The podman service (pid ${pid}) has cached its old configuration`,
        fix: restartOf(pid),
      })),
      ...causes.others,
    ],
    todo: stale.map(({ pid }) => `${restartOf(pid)}   (the podman service has cached its old configuration)`),
  }
}

function restartOf(pid: number): string {
  const isRoot = process.geteuid?.() === 0
  return isRoot
    ? `systemctl restart podman   (or end pid ${pid} and start it again)`
    : `systemctl --user restart podman   (or end pid ${pid} and start it again)`
}

function say(mirrors: readonly string[]): string {
  return mirrors.length === 0
    ? 'no mirror'
    : `${mirrors.join(', ')} as ${mirrors.length === 1 ? 'the mirror' : 'mirrors'}`
}

/** The locations of Docker Hub's mirrors; undefined where podman did not answer. */
function mirrorsIn(result: Awaited<ReturnType<RunCommand>>): readonly string[] | undefined {
  const info = result?.exitCode === 0 ? parseObject(result.stdout) : undefined
  if (info === undefined) return undefined
  const registries = isObject(info['registries']) ? info['registries'] : {}
  const hub = registries['docker.io']
  const mirrors: unknown = isObject(hub) ? hub['Mirrors'] : undefined
  return (Array.isArray(mirrors) ? mirrors : []).flatMap((one: unknown) =>
    isObject(one) && typeof one['Location'] === 'string' ? [one['Location']] : [],
  )
}

interface RunningService {
  readonly pid: number
  readonly socket: string
}

/** Each `podman system service` of this user, by proc(5): it reads registries.conf once. */
async function runningServices(env: Machine['env']): Promise<RunningService[]> {
  const isRoot = process.geteuid?.() === 0
  const usual = isRoot
    ? '/run/podman/podman.sock'
    : `${env['XDG_RUNTIME_DIR'] ?? `/run/user/${process.geteuid?.()}`}/podman/podman.sock`
  const found: RunningService[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const words = ((await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))) ?? '').split('\0').slice(0, -1)
    const at = words.indexOf('service')
    if (basename(words[0] ?? '') !== 'podman' || at < 1 || words[at - 1] !== 'system') continue
    const named = words.slice(at + 1).find((word) => /^(unix:\/\/)?\//.test(word))
    found.push({ pid: Number(entry), socket: named?.replace(/^unix:\/\//, '') ?? usual })
  }
  return found
}
