import { rm, writeFile } from 'node:fs/promises'
import { dirname, join, relative, resolve } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { temporaryFolder } from '../../lib/fs.ts'
import type { RunCommand } from '../../lib/process.ts'
import { isLoopback, majorAndMinor } from '../address.ts'
import { findEngines } from '../docker/engines.ts'
import { kindOf } from '../docker/installation.ts'
import { caFileName } from '../files/kinds.ts'
import { localFiles } from '../files/local.ts'
import type { ClientAdapter, ClientLocation, ClientOptions, ConfigTarget, Machine, Observation } from '../types.ts'
import { planBuildkit, stripBuildkit } from './plan.ts'

/** Whose buildkitd it is: that of builders which buildx makes, or one that runs by itself. */
type BuildkitKind = 'buildx' | 'buildkitd' | 'file'

interface Found {
  /** `0.29.1`; undefined: there is none, or none that says so. */
  readonly buildx: string | undefined
  readonly buildkitd: string | undefined
  /** Where containers of Docker's engine live. */
  readonly home: ClientLocation
}

const timeoutMs = 5000
const restartBuildkitd = 'sudo systemctl restart buildkit   (it reads its configuration when it starts)'
const remakeBuilders = 'docker buildx rm BUILDER, and make it again   (a builder keeps what it was made with)'

/** BuildKit, in the containers that buildx makes for it or by itself. The one inside dockerd is Docker's. */
export const buildkitAdapter: ClientAdapter = {
  client: 'buildkit',
  summary: 'buildkitd.toml, for builders that buildx makes and for a buildkitd of its own',

  async find(machine) {
    const buildx = await versionOf(machine, 'docker', ['buildx', 'version'])
    if (buildx !== undefined) return `buildx ${buildx}`
    const buildkitd = await versionOf(machine, 'buildkitd', ['--version'])
    return buildkitd && `buildkitd ${buildkitd}`
  },

  async targets(machine, options) {
    const found = machine.detached ? undefined : await lookAround(machine)
    if (options.file !== undefined)
      return [placeOf(machine, 'file', resolve(machine.cwd, options.file), found, options)]
    const buildx = placeOf(machine, 'buildx', buildxFile(machine), found, options)
    const buildkitd = placeOf(
      machine,
      'buildkitd',
      join(machine.root, 'etc', 'buildkit', 'buildkitd.toml'),
      found,
      options,
    )
    if (options.scope !== undefined) return [options.scope === 'user' ? buildx : buildkitd]
    if (found === undefined) return [buildkitd]
    const places = [...(found.buildx ? [buildx] : []), ...(found.buildkitd ? [buildkitd] : [])]
    return places.length > 0 ? places : [buildx]
  },

  recall(machine, { kind, path = '' }) {
    return placeOf(machine, kind as BuildkitKind, path, undefined, undefined)
  },
}

function placeOf(
  machine: Machine,
  kind: BuildkitKind,
  path: string,
  found: Found | undefined,
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
  // What lies below --root is read where that is copied to.
  const below = relative(machine.root, caPath)
  const ca = { path: caPath, name: detached && !below.startsWith('..') ? join('/', below) : caPath }
  const target = { path, ca }
  return {
    id: kind === 'file' ? path : kind,
    title: `${titles[kind]} (${path})`,
    details: { kind, scope, path, ...(kind === 'file' && { file: path }) },
    location: kind === 'buildkitd' ? { in: 'host' } : (found?.home ?? { in: 'host' }),
    files: localFiles,
    wants: { files: [path, caPath], trees: [] },
    plan(mirror, files) {
      const plan = planBuildkit(mirror, target, files)
      const then =
        kind === 'buildkitd'
          ? [restartBuildkitd]
          : [
              `${createCommand(mirror.cache, kind === 'file' ? path : undefined, version)}   (a builder reads it when it is made)`,
            ]
      // Nobody can ask what buildkitd has read.
      const unless = kind === 'buildkitd' ? [`${restartBuildkitd}, unless it was restarted since`] : []
      return { ...plan, todo: plan.changes.length > 0 ? then : unless }
    },
    strip: (mirror, files) => stripBuildkit(mirror, target, files),
    ...(!detached && { afterUndo: () => [kind === 'buildkitd' ? restartBuildkitd : remakeBuilders] }),
    ...(!detached &&
      kind === 'buildx' && {
        pull: (image: string) => tryBuild(image, runCommand),
        observe: ({ cache }: { readonly cache: string }) => observeBuilder(cache, version, runCommand),
      }),
    reasons: [
      {
        why: 'the builder is older than its configuration: it has read what was there when it was made',
        fix: 'docker buildx rm BUILDER, and make it again',
      },
      { why: "the builder in use is Docker's own", fix: 'docker buildx ls   (or: mirror configure docker)' },
      {
        why: 'the builder has a network of its own, and 127.0.0.1 there is not this machine',
        fix: createCommand('http://127.0.0.1:5055', undefined, version),
      },
    ],
  }
}

/** What buildx says of the builder in use. Since 0.18 it also tells which configuration the builder was made with. */
async function observeBuilder(
  cache: string,
  version: string | undefined,
  runCommand: Machine['runCommand'],
): Promise<Observation> {
  const said = await runCommand('docker', ['buildx', 'inspect'], { timeoutMs })
  const text = said?.exitCode === 0 ? said.stdout : ''
  const [name, driver] = ['Name', 'Driver'].map((key) => new RegExp(`^${key}:\\s*(\\S+)`, 'm').exec(text)?.[1])
  if (name === undefined || driver === undefined)
    return { inUse: undefined, saw: ['docker buildx inspect names no builder.'], reasons: [], todo: [] }
  const isOwn = driver !== 'docker'
  const tells = text.includes('buildkitd.toml')
  const inUse = isOwn ? (tells ? text.includes(new URL(cache).host) : undefined) : false
  const madeWith = tells
    ? [`It was made with a buildkitd.toml that ${inUse ? 'names' : 'does not name'} ${cache}.`]
    : []
  const older = {
    why: 'the builder was made before it was configured',
    fix: `docker buildx rm ${name}; ${createCommand(cache, undefined, version)}`,
  }
  const apart = {
    why: 'the builder has a network of its own, and 127.0.0.1 there is not this machine',
    fix: createCommand(cache, undefined, version),
  }
  return {
    inUse,
    saw: [`The builder in use is ${name} (driver ${driver}).`, ...(isOwn ? madeWith : [])],
    reasons: !isOwn
      ? [
          {
            why: "the builder in use is Docker's own, which reads the configuration of docker",
            fix: 'docker buildx ls   (or: mirror configure docker)',
          },
        ]
      : inUse === true
        ? [apart]
        : [older, ...(inUse === undefined ? [apart] : [])],
    todo: inUse === false && isOwn ? [older.fix] : inUse === false ? [createCommand(cache, undefined, version)] : [],
  }
}

/** A builder that reaches an address of this machine's loopback shares its network. */
function createCommand(cache: string, file: string | undefined, version: string | undefined): string {
  const [major, minor] = majorAndMinor(version) ?? [0, 14]
  const flag = major === 0 && minor < 14 ? '--config' : '--buildkitd-config'
  return [
    'docker buildx create --use --driver docker-container',
    ...(isLoopback(cache) ? ['--driver-opt network=host'] : []),
    ...(file === undefined ? [] : [`${flag} ${file}`]),
  ].join(' ')
}

/** What buildx gives to each builder that is made without another. */
function buildxFile({ env, home, detached }: Machine): string {
  const docker = (!detached && env['DOCKER_CONFIG']) || join(home, '.docker')
  return join((!detached && env['BUILDX_CONFIG']) || join(docker, 'buildx'), 'buildkitd.default.toml')
}

async function lookAround(machine: Machine): Promise<Found> {
  const [buildx, buildkitd, home] = await Promise.all([
    versionOf(machine, 'docker', ['buildx', 'version']),
    versionOf(machine, 'buildkitd', ['--version']),
    homeOfContainers(machine),
  ])
  return { buildx, buildkitd, home }
}

async function homeOfContainers(machine: Machine): Promise<ClientLocation> {
  const what = 'builders'
  const inVm = { in: 'vm', what, hostName: 'host.docker.internal' } as const
  try {
    const [engine] = await findEngines(machine)
    const kind = engine && kindOf(engine.info, machine)
    if (kind === undefined) return machine.platform === 'linux' ? { in: 'host' } : inVm
    if (kind === 'system' && engine?.dockerd?.sharesNetwork !== false) return { in: 'host' }
    if (kind !== 'system' && kind !== 'rootless') return inVm
    const why = "not even the host's network is that of this machine there"
    return { in: 'apart', what, why, hints: [] }
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    return { in: 'apart', what, why: 'they run on another machine', hints: error.hints }
  }
}

/** `github.com/docker/buildx v0.29.1 4d6…`, `buildkitd github.com/moby/buildkit v0.12.5 bac3f2b…` */
async function versionOf({ runCommand }: Machine, file: string, args: string[]): Promise<string | undefined> {
  const result = await runCommand(file, args, { timeoutMs })
  return result?.exitCode === 0 ? /\bv?(\d+\.\d+\S*)/.exec(result.stdout)?.[1] : undefined
}

const buildMs = 90_000
const askMs = 10_000

/** Builds an image of nothing but this one by the builder in use, and keeps nothing of it. */
async function tryBuild(image: string, runCommand: RunCommand): Promise<{ failed: string | undefined }> {
  const builder = await runCommand('docker', ['buildx', 'inspect'], { timeoutMs: askMs })
  if (builder === undefined) return { failed: 'there is no docker command' }
  if (builder.exitCode !== 0) return { failed: builder.stderr.trim() || 'buildx names no builder' }
  const driver = /^Driver:\s*(\S+)/m.exec(builder.stdout)?.[1]
  if (driver === undefined || driver === 'docker')
    return { failed: "the builder in use is dockerd's own, which reads the configuration of docker" }
  const folder = await temporaryFolder('mirror-build-')
  try {
    await writeFile(join(folder, 'Dockerfile'), `FROM ${image}\n`)
    const args = ['buildx', 'build', '--no-cache', '--pull', '--output', 'type=cacheonly', folder]
    const result = await runCommand('docker', args, { timeoutMs: buildMs })
    if (result?.exitCode === 0) return { failed: undefined }
    return { failed: result?.stderr.trim().split('\n').at(-1) ?? `the build took longer than ${buildMs / 1000} s` }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}
