import { rm, writeFile } from 'node:fs/promises'
import { dirname, join, relative, resolve } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { createTemporaryFolder } from '../../lib/fs.ts'
import type { RunCommand } from '../../lib/process.ts'
import { describeProgramFailure, isLoopbackUrl, parseVersion } from '../address.ts'
import { findEngines, getDockerKind } from '../docker/engines.ts'
import { caFileName } from '../files/kinds.ts'
import { localFiles } from '../files/local.ts'
import type { ClientAdapter, ClientLocation, ClientOptions, ConfigTarget, Machine, Observation } from '../types.ts'
import { inspectBuildkit } from './inspect.ts'
import { planBuildkit, stripBuildkit } from './plan.ts'

/**
 * Distinguishes the buildkitd that a file is for: that of builders which buildx creates, the machine's own, or a file that the user
 * named.
 */
type BuildkitKind = 'buildx' | 'buildkitd' | 'file'

/** Holds the installed programs, and the location of builders. */
interface DetectedBuildkit {
  /** Holds the version, as `0.29.1`; undefined if not installed, or of unknown version. */
  readonly buildx: string | undefined
  readonly buildkitd: string | undefined
  /** Holds the location of containers of Docker's engine. */
  readonly location: ClientLocation
}

const versionTimeoutMs = 5000
const restartBuildkitd = 'sudo systemctl restart buildkit   (it reads its configuration when it starts)'
const remakeBuilders =
  'docker buildx rm BUILDER, then create it again   (a builder keeps the configuration it was created with)'

/** Configures BuildKit in containers that buildx creates, or on its own. The one inside dockerd belongs to the docker client. */
export const buildkitAdapter: ClientAdapter = {
  client: 'buildkit',
  summary: 'buildkitd.toml, for builders that buildx makes and for a buildkitd of its own',

  async find(machine) {
    const buildx = await getVersion(machine, 'docker', ['buildx', 'version'])
    if (buildx !== undefined) return `buildx ${buildx}`
    const buildkitd = await getVersion(machine, 'buildkitd', ['--version'])
    return buildkitd && `buildkitd ${buildkitd}`
  },

  async findTargets(machine, options) {
    const found = machine.detached ? undefined : await detectBuildkit(machine)
    if (options.file !== undefined)
      return [toConfigTarget(machine, 'file', resolve(machine.cwd, options.file), found, options)]
    const buildx = toConfigTarget(machine, 'buildx', getBuildxFile(machine), found, options)
    const buildkitd = toConfigTarget(
      machine,
      'buildkitd',
      join(machine.root, 'etc', 'buildkit', 'buildkitd.toml'),
      found,
      options,
    )
    if (options.scope !== undefined) return [options.scope === 'user' ? buildx : buildkitd]
    if (found === undefined) return [buildkitd]
    const targets = [...(found.buildx ? [buildx] : []), ...(found.buildkitd ? [buildkitd] : [])]
    return targets.length > 0 ? targets : [buildx]
  },

  restoreTarget(machine, { kind, path = '' }) {
    return toConfigTarget(machine, kind as BuildkitKind, path, undefined, undefined)
  },
}

function toConfigTarget(
  machine: Machine,
  kind: BuildkitKind,
  path: string,
  found: DetectedBuildkit | undefined,
  options: ClientOptions | undefined,
): ConfigTarget {
  const { runCommand, detached } = machine
  const scope = kind === 'buildkitd' ? 'system' : 'user'
  const titles = {
    buildx: 'builders that buildx makes',
    buildkitd: "this machine's buildkitd",
    file: 'a buildkitd.toml',
  }
  const version = options?.clientVersion ?? found?.buildx
  const caPath = join(dirname(path), caFileName)
  // Name the CA by its path below --root: the files are copied from there.
  const below = relative(machine.root, caPath)
  const ca = { path: caPath, name: detached && !below.startsWith('..') ? join('/', below) : caPath }
  const target = { path, ca }
  return {
    id: kind === 'file' ? path : kind,
    title: `${titles[kind]} (${path})`,
    details: { kind, scope, path, ...(kind === 'file' && { file: path }) },
    location: kind === 'buildkitd' ? { in: 'host' } : (found?.location ?? { in: 'host' }),
    files: localFiles,
    inputs: { files: [path, caPath], trees: [] },
    plan(mirror, files) {
      const plan = planBuildkit(mirror, target, files)
      const stepsAfterChange =
        kind === 'buildkitd'
          ? [restartBuildkitd]
          : [
              `${createCommand(mirror.cache, kind === 'file' ? path : undefined, version)}   (a builder reads it when it is created)`,
            ]
      // Mention the restart even without changes: buildkitd does not report what it has read.
      const stepsWithoutChange = kind === 'buildkitd' ? [`${restartBuildkitd}, unless it was restarted since`] : []
      return { ...plan, todo: plan.changes.length > 0 ? stepsAfterChange : stepsWithoutChange }
    },
    strip: (mirror, files) => stripBuildkit(mirror, target, files),
    inspect: (cache, files) => inspectBuildkit(cache, path, files),
    ...(!detached && { listUndoSteps: () => [kind === 'buildkitd' ? restartBuildkitd : remakeBuilders] }),
    ...(!detached &&
      kind === 'buildx' && {
        pull: (image: string) => pullByBuild(image, runCommand),
        observe: ({ cache }: { readonly cache: string }) => observeBuilder(cache, version, runCommand),
      }),
    reasons: [
      {
        why: 'the builder is older than its configuration, which a builder reads only when it is created',
        fix: 'docker buildx rm BUILDER, then create it again',
      },
      { why: "the builder in use is Docker's own", fix: 'docker buildx ls   (or: mirror configure docker)' },
      {
        why: 'the builder has a network of its own, and 127.0.0.1 there is not this machine',
        fix: createCommand('http://127.0.0.1:5055', undefined, version),
      },
    ],
  }
}

/** Observes the builder in use by buildx. Since 0.18 buildx also prints the configuration that the builder was created with. */
async function observeBuilder(
  cache: string,
  version: string | undefined,
  runCommand: Machine['runCommand'],
): Promise<Observation> {
  const result = await runCommand('docker', ['buildx', 'inspect'], { timeoutMs: versionTimeoutMs })
  const text = result?.exitCode === 0 ? result.stdout : ''
  const [name, driver] = ['Name', 'Driver'].map((key) => new RegExp(`^${key}:\\s*(\\S+)`, 'm').exec(text)?.[1])
  if (name === undefined || driver === undefined) {
    const failure = describeProgramFailure('docker buildx inspect', result)
    const saw = [failure ?? 'docker buildx inspect names no builder.']
    return { inUse: undefined, ...(failure !== undefined && { failure }), saw, reasons: [], todo: [] }
  }
  const isOwn = driver !== 'docker'
  const printsConfig = text.includes('buildkitd.toml')
  const inUse = isOwn ? (printsConfig ? text.includes(new URL(cache).host) : undefined) : false
  const createdWith = printsConfig
    ? [`It was created with a buildkitd.toml that ${inUse ? 'names' : 'does not name'} ${cache}.`]
    : []
  const staleBuilder = {
    why: 'the builder was created before mirror configured it',
    fix: `docker buildx rm ${name}; ${createCommand(cache, undefined, version)}`,
  }
  const isolatedBuilder = {
    why: 'the builder has a network of its own, and 127.0.0.1 there is not this machine',
    fix: createCommand(cache, undefined, version),
  }
  return {
    inUse,
    saw: [`The builder in use is ${name} (driver ${driver}).`, ...(isOwn ? createdWith : [])],
    reasons: !isOwn
      ? [
          {
            why: "the builder in use is Docker's own, which reads the configuration of docker",
            fix: 'docker buildx ls   (or: mirror configure docker)',
          },
        ]
      : inUse === true
        ? [isolatedBuilder]
        : [staleBuilder, ...(inUse === undefined ? [isolatedBuilder] : [])],
    todo:
      inUse === false && isOwn ? [staleBuilder.fix] : inUse === false ? [createCommand(cache, undefined, version)] : [],
  }
}

/** Returns the command that creates a builder. It shares the host's network if the mirror is on loopback. */
function createCommand(cache: string, file: string | undefined, version: string | undefined): string {
  const [major, minor] = parseVersion(version) ?? [0, 14]
  const flag = major === 0 && minor < 14 ? '--config' : '--buildkitd-config'
  return [
    'docker buildx create --use --driver docker-container',
    ...(isLoopbackUrl(cache) ? ['--driver-opt network=host'] : []),
    ...(file === undefined ? [] : [`${flag} ${file}`]),
  ].join(' ')
}

/** Returns the path of the file that buildx gives to each new builder. */
function getBuildxFile({ env, home, detached }: Machine): string {
  const docker = (!detached && env['DOCKER_CONFIG']) || join(home, '.docker')
  return join((!detached && env['BUILDX_CONFIG']) || join(docker, 'buildx'), 'buildkitd.default.toml')
}

async function detectBuildkit(machine: Machine): Promise<DetectedBuildkit> {
  const [buildx, buildkitd, location] = await Promise.all([
    getVersion(machine, 'docker', ['buildx', 'version']),
    getVersion(machine, 'buildkitd', ['--version']),
    findContainerLocation(machine),
  ])
  return { buildx, buildkitd, location }
}

async function findContainerLocation(machine: Machine): Promise<ClientLocation> {
  const what = 'builders'
  const inVm = { in: 'vm', what, hostName: 'host.docker.internal' } as const
  try {
    const [engine] = await findEngines(machine)
    const kind = engine && getDockerKind(engine.info, machine)
    if (kind === undefined) return machine.platform === 'linux' ? { in: 'host' } : inVm
    if (kind === 'system' && engine?.dockerd?.sharesNetwork !== false) return { in: 'host' }
    if (kind !== 'system' && kind !== 'rootless') return inVm
    const why = "even the host's network is not that of this machine there"
    return { in: 'isolated', what, why, hints: [] }
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return { in: 'isolated', what, why: 'they run on another machine', hints: error.hints }
  }
}

/** Returns the version from `github.com/docker/buildx v0.29.1 4d6…` or `buildkitd github.com/moby/buildkit v0.12.5 bac3f2b…`. */
async function getVersion({ runCommand }: Machine, file: string, args: string[]): Promise<string | undefined> {
  const result = await runCommand(file, args, { timeoutMs: versionTimeoutMs })
  return result?.exitCode === 0 ? /\bv?(\d+\.\d+\S*)/.exec(result.stdout)?.[1] : undefined
}

const buildTimeoutMs = 90_000
const inspectTimeoutMs = 10_000

/** Pulls an image by a build in the builder in use, without output. Resolves to the failure. */
async function pullByBuild(image: string, runCommand: RunCommand): Promise<{ failed: string | undefined }> {
  const builder = await runCommand('docker', ['buildx', 'inspect'], { timeoutMs: inspectTimeoutMs })
  if (builder === undefined) return { failed: 'docker is not installed.' }
  if (/unknown command: docker buildx|'buildx' is not a docker command/.test(builder.stderr))
    return { failed: 'docker buildx is not installed.' }
  if (builder.exitCode !== 0) return { failed: builder.stderr.trim() || 'buildx names no builder' }
  const driver = /^Driver:\s*(\S+)/m.exec(builder.stdout)?.[1]
  if (driver === undefined || driver === 'docker')
    return { failed: "the builder in use is dockerd's own, which reads the configuration of docker" }
  const folder = await createTemporaryFolder('mirror-build-')
  try {
    await writeFile(join(folder, 'Dockerfile'), `FROM ${image}\n`)
    const args = ['buildx', 'build', '--no-cache', '--pull', '--output', 'type=cacheonly', folder]
    const result = await runCommand('docker', args, { timeoutMs: buildTimeoutMs })
    if (result?.exitCode === 0) return { failed: undefined }
    return {
      failed: result?.stderr.trim().split('\n').at(-1) ?? `the build took longer than ${buildTimeoutMs / 1000} s`,
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}
