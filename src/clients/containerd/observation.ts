import { join } from 'node:path'
import { errnoOf, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import { localFiles } from '../files/local.ts'
import type { Machine, Observation, Reason } from '../types.ts'
import { type ContainerdFile, readContainerdConfig } from './config-toml.ts'
import { criClient, CriError } from './cri.ts'
import { namesMirror } from './hosts-toml.ts'
import type { ContainerdTarget } from './plan.ts'

const statusMs = 5000

export interface ObservedContainerd {
  readonly machine: Machine
  readonly socket: string
  readonly target: ContainerdTarget
  /** Whether `containerd config dump` is about this one. */
  readonly dump: boolean
}

/** What containerd's configuration, the running containerd, and the hosts.toml for Docker Hub say. */
export async function observeContainerd(
  { machine, socket, target, dump }: ObservedContainerd,
  cache: string,
): Promise<Observation> {
  const hosts = target.hosts.name
  const written = await configPathsIn(dump ? await dumpOf(machine) : undefined, target)
  const live = await liveConfigPaths(socket)
  const hostsToml = await findHostsToml(target.hosts.path, cache)
  const has = (paths: readonly string[] | undefined) => paths?.includes(hosts)
  const isStale = has(written) === true && has(live) === false
  const inUse = !hostsToml.names ? false : (has(live) ?? (has(written) === false ? false : undefined))
  return {
    inUse,
    saw: [
      ...(written === undefined
        ? []
        : [`config_path in the configuration (containerd config dump) is ${say(written)}.`]),
      live === undefined
        ? 'The running containerd does not tell its config_path: restart it if it was not restarted since that was set.'
        : `config_path in the running containerd is ${say(live)}.`,
      hostsToml.says,
    ],
    reasons: reasonsFor({ hosts, written, live, isStale, names: hostsToml.names, cache, file: target.configFile.name }),
    todo: isStale ? [restart] : [],
  }
}

const restart = 'sudo systemctl restart containerd   (it runs with an older configuration; containers go on)'

interface Findings {
  readonly hosts: string
  readonly written: readonly string[] | undefined
  readonly live: readonly string[] | undefined
  readonly isStale: boolean
  readonly names: boolean
  readonly cache: string
  readonly file: string
}

function reasonsFor({ hosts, written, live, isStale, names, cache, file }: Findings): Reason[] {
  if (!names) return [{ why: 'containerd is not configured for this mirror', fix: 'mirror configure containerd' }]
  if (isStale) return [{ why: 'containerd was not restarted since config_path was set', fix: restart }]
  if (written !== undefined && !written.includes(hosts))
    return [
      {
        why: `config_path is not set to ${hosts}`,
        fix: `mirror configure containerd --dry-run   (says what ${file} needs)`,
      },
    ]
  const isUnsure = live === undefined
  return [
    ...((written?.length ?? 0) > 1
      ? [
          {
            why: 'config_path names several folders, which versions since 2.1 may not understand',
            fix: `config_path = "${hosts}"   (in ${file})`,
          },
        ]
      : []),
    ...(isUnsure ? [{ why: 'containerd was not restarted since config_path was set', fix: restart }] : []),
    {
      why: `containerd could not read a hosts.toml, or did not reach ${cache}`,
      fix: 'journalctl -u containerd -n 50   (it says why in its log only)',
    },
  ]
}

function say(paths: readonly string[]): string {
  return paths.length === 0 ? 'not set' : paths.join(':')
}

async function configPathsIn(
  dump: string | undefined,
  target: ContainerdTarget,
): Promise<readonly string[] | undefined> {
  const { configFile, imports, version } = target
  try {
    if (dump !== undefined) return readContainerdConfig({ name: configFile.name, text: dump }, version).configPaths
    const [main, ...others] = await Promise.all([configFile, ...imports].map(read))
    return readContainerdConfig(main!, version, others).configPaths
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function read({ name, path }: { readonly name: string; readonly path: string }): Promise<ContainerdFile> {
  return { name, text: Buffer.from((await ifVisible(localFiles.read(path)))?.bytes ?? []).toString() }
}

/** What the running containerd tells kubelets of its configuration; undefined where it tells none, as 2.0 and 2.1. */
async function liveConfigPaths(socket: string): Promise<readonly string[] | undefined> {
  try {
    const { config } = await criClient(socket, statusMs).info()
    const registry = config === undefined ? undefined : parseObject(config)?.['registry']
    const path = isObject(registry) ? registry['configPath'] : undefined
    return typeof path === 'string' ? path.split(':').filter(Boolean) : undefined
  } catch (error) {
    if (error instanceof CriError || errnoOf(error) !== undefined) return undefined
    throw error
  }
}

/** The file by which containerd gets images of Docker Hub. */
async function findHostsToml(
  folder: string,
  cache: string,
): Promise<{ readonly names: boolean; readonly says: string }> {
  for (const name of ['docker.io', '_default']) {
    const path = join(folder, name, 'hosts.toml')
    const state = await ifVisible(localFiles.read(path))
    if (state === undefined) continue
    const names = namesMirror(Buffer.from(state.bytes).toString(), cache)
    return { names, says: `${path} ${names ? 'names' : 'does not name'} ${cache}.` }
  }
  return { names: false, says: `There is no hosts.toml for docker.io in ${folder}.` }
}

/** Undefined where there is no containerd to ask, or it cannot read its own file. */
export async function dumpOf({ runCommand, detached }: Machine): Promise<string | undefined> {
  if (detached) return undefined
  const result = await runCommand('containerd', ['config', 'dump'], { timeoutMs: 10_000 })
  return result?.exitCode === 0 ? result.stdout : undefined
}
