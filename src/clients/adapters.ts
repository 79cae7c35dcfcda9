import { access, constants } from 'node:fs/promises'
import { delimiter, isAbsolute, join, resolve } from 'node:path'
import { mirrorPaths } from '../config/paths.ts'
import { getErrno, exitCode, MirrorError, findNearest } from '../lib/errors.ts'
import { type CommandEnvironment, runCommand } from '../lib/process.ts'
import { hasEngine, listDockerdPrograms } from './docker/engines.ts'
import type { printedClients } from './printed.ts'
import { findRecordFolders } from './records.ts'
import {
  type ClientAdapter,
  type ClientName,
  clientNames,
  type ClientOptions,
  type ConfigTarget,
  type Machine,
} from './types.ts'

/** Maps the clients to the loaders of their adapters. Each loads its module on use. */
const loaders: Partial<Record<ClientName, () => Promise<ClientAdapter>>> = {
  docker: async () => (await import('./docker/docker.ts')).dockerAdapter,
  buildkit: async () => (await import('./buildkit/buildkit.ts')).buildkitAdapter,
  containerd: async () => (await import('./containerd/containerd.ts')).containerdAdapter,
  podman: async () => (await import('./podman/podman.ts')).podmanAdapter,
  kind: async () => (await import('./kind/kind.ts')).kindAdapter,
  kaniko: () => loadPrinted('kaniko'),
  k3d: async () => (await import('./k3s/k3d.ts')).k3dAdapter,
  k3s: async () => (await import('./k3s/k3s.ts')).k3sAdapter,
  minikube: async () => (await import('./minikube.ts')).minikubeAdapter,
  testcontainers: () => loadPrinted('testcontainers'),
  skaffold: () => loadPrinted('skaffold'),
  tilt: () => loadPrinted('tilt'),
}

async function loadPrinted(client: keyof typeof printedClients): Promise<ClientAdapter> {
  return (await import('./printed.ts')).createPrintedAdapter(client)
}

/**
 * Returns the adapter of a client that the user names. Throws MirrorError (usage) for an unknown name. `command`: the command line
 * that the error suggests, with CLIENT in place of the name.
 */
export async function getAdapter(name: string, command = 'mirror configure CLIENT'): Promise<ClientAdapter> {
  const client = clientNames.find((known) => known === name)
  const adapter = client && loaders[client]
  if (adapter) return adapter()
  const suggestion = findNearest(name, Object.keys(loaders))
  const question = suggestion === undefined ? '' : ` Did you mean ${suggestion}?`
  throw new MirrorError(`There is no client ${JSON.stringify(name)}.${question}`, {
    exit: exitCode.usage,
    hints: [`${command}   (${clientNames.slice(0, -1).join(', ')} or ${clientNames.at(-1)})`],
  })
}

async function loadAllAdapters(): Promise<ClientAdapter[]> {
  return Promise.all(Object.values(loaders).map((adapter) => adapter()))
}

interface FoundClient {
  readonly adapter: ClientAdapter
  /** Names the program and its version: `podman 4.3.1`. */
  readonly what: string
}

/** Finds the clients that are installed on this machine; none with `--root`, because no program is run then. */
export async function findClients(machine: Machine): Promise<FoundClient[]> {
  if (machine.detached) return []
  const found = await Promise.all(
    (await loadAllAdapters()).map(async (adapter) => ({ adapter, what: await adapter.find(machine) })),
  )
  return found.flatMap(({ adapter, what }) => (what === undefined ? [] : { adapter, what }))
}

/** Leaves every choice to mirror. */
export const noOptions: ClientOptions = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

/** Returns the targets that `mirror configure` of a client offers; none when they cannot be found, which that command explains. */
export async function listDefaultTargets(machine: Machine, adapter: ClientAdapter): Promise<readonly ConfigTarget[]> {
  try {
    return await adapter.findTargets(machine, noOptions)
  } catch (error) {
    if (error instanceof MirrorError) return []
    throw error
  }
}

/** Reports whether only root may write the files of a target. */
export async function isForRoot({ details, files, inputs }: ConfigTarget): Promise<boolean> {
  const [main] = inputs.files
  if (details['scope'] !== 'system' || main === undefined || process.geteuid?.() === 0) return false
  return !(await files.mayWrite(main))
}

/** Lists the programs that `find` of each adapter runs. */
const programs = {
  podman: ['podman', 'buildah', 'skopeo'],
  containerd: ['containerd'],
  kind: ['kind'],
  k3d: ['k3d'],
  k3s: ['k3s'],
  minikube: ['minikube'],
} as const satisfies Partial<Record<ClientName, string[]>>

/**
 * Finds the clients whose programs are installed, by the rules of `find` of each adapter. It is faster than `findClients` because it
 * runs no program.
 */
export async function findClientsOnPath(
  machine: Pick<Machine, 'platform' | 'env' | 'home'> & { readonly root?: string },
): Promise<ClientName[]> {
  const { root = '/' } = machine
  const folders = (machine.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '')
  const isInstalled = async (names: readonly string[]) => {
    const paths = names.flatMap((name) =>
      isAbsolute(name) ? [join(root, name)] : folders.map((folder) => join(folder, name)),
    )
    const checks = paths.map(isProgram)
    return (await Promise.all(checks)).includes(true)
  }
  // Ignore the `docker` command alone, because the engine pulls.
  const hasDocker = (await isInstalled(listDockerdPrograms(machine.platform))) || (await hasEngine(machine))
  const found = await Promise.all(
    Object.entries(programs).map(async ([name, names]) => ((await isInstalled(names)) ? [name as ClientName] : [])),
  )
  return [...(hasDocker ? (['docker'] as const) : []), ...found.flat()]
}

async function isProgram(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK)
    return true
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return false
  }
}

/** Describes the machine for the adapters. `root`: a folder in place of `/` and `~`; then no program or daemon is contacted. */
export async function describeMachine(surroundings: CommandEnvironment, root: string | undefined): Promise<Machine> {
  const { platform, env, homedir, cwd, callers } = surroundings
  const { stateDir } = mirrorPaths(surroundings)
  const rootFolder = root === undefined ? undefined : resolve(cwd, root)
  return {
    platform,
    env,
    home: rootFolder ?? homedir,
    root: rootFolder ?? '/',
    detached: rootFolder !== undefined,
    cwd,
    callers,
    stateDir,
    records: await findRecordFolders(surroundings),
    runCommand,
  }
}
