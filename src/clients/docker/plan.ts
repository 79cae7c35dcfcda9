import { join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { caChange, caFileName, hostsToTrust } from '../ca-file.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from '../client-config.ts'
import { planHostsFolders, stripHostsFolders } from '../docker-hosts-folders.ts'
import { dockerForm, type DockerForm, type DockerTarget, firstWithFolders } from '../docker-target.ts'
import type { FilesNow } from '../files-now.ts'
import { majorAndMinor } from '../version.ts'
import { planDaemonJson, stripDaemonJson } from './daemon-json.ts'

/**
 * What has to be written for an engine to come through the mirror. Throws a MirrorError (usage) for files and flags that leave
 * no safe way. https://docs.docker.com/engine/daemon/configure-registry/
 */
export function planDocker(mirror: MirrorForClient, target: DockerTarget, files: FilesNow): ConfigPlan {
  const form = dockerForm(target)
  if (form !== 'folders') refuseForMirrors(mirror, form)
  const forBuilds = buildsNeedFolders(mirror, target)
  const parts = [
    ...(form === 'folders' ? [] : [planDaemonJson(mirror, target, files)]),
    ...(form === 'mirrors' && !forBuilds ? [] : [planHostsFolders(mirror, target, files)]),
  ]
  const { certsFolder } = target
  const ca =
    certsFolder === undefined ? [] : caFiles(mirror, certsFolder).flatMap((path) => caChange(path, mirror.ca, files))
  return {
    changes: [...parts.flatMap(({ changes }) => changes), ...ca],
    notes: [
      sayForm(form, mirror, target),
      ...(form === 'mirrors' && forBuilds ? ['docker build reads the folders, and by them trusts the mirror.'] : []),
      ...parts.flatMap(({ notes }) => notes),
    ],
    todo: [...parts.flatMap(({ todo }) => todo), ...(certsFolder === undefined ? trustByHand(mirror) : [])],
  }
}

/**
 * Whether `docker build` would pass the mirror by without folders: it reads them whatever the image store, and trusts
 * registry-mirrors no further than Docker Hub itself.
 */
function buildsNeedFolders({ ca }: MirrorForClient, { certsFolder, version }: DockerTarget): boolean {
  return ca !== undefined && certsFolder !== undefined && (majorAndMinor(version)?.[0] ?? 0) >= firstWithFolders
}

/** For an engine whose folders cannot be written from here. */
export function trustByHand({ cache, ca }: Pick<MirrorForClient, 'cache' | 'ca'>): string[] {
  if (ca === undefined) return []
  const file = `~/.docker/certs.d/${new URL(cache).host}/ca.crt`
  return [`Have the engine trust the mirror's CA (Docker Desktop: as ${file}, and restart it)`]
}

/** dockerd looks here for what to trust at a host, with every pull. */
function caFiles(mirror: Pick<MirrorForClient, 'cache' | 'registry'>, certsFolder: string): string[] {
  return hostsToTrust(mirror).map((host) => join(certsFolder, host, caFileName))
}

/** Takes the mirror out of files that were changed after us. */
export function stripDocker(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: Pick<DockerTarget, 'daemonJson' | 'certsFolder'>,
  files: FilesNow,
): FileChange[] {
  const { daemonJson, certsFolder } = target
  const lists = stripDaemonJson(mirror, daemonJson, files)
  if (certsFolder === undefined) return lists
  const ca = caFiles(mirror, certsFolder).flatMap((path) => caChange(path, undefined, files))
  return [...lists, ...stripHostsFolders(mirror, certsFolder, files), ...ca]
}

function refuseForMirrors(mirror: MirrorForClient, form: DockerForm): void {
  const folders = 'mirror configure docker --client-version 28 --image-store containerd   (for such an engine)'
  const refuse = (message: string, hints: string[]): never => {
    throw new MirrorError(message, { exit: exitCode.usage, hints: form === 'both' ? [...hints, folders] : hints })
  }
  // dockerd asks its mirrors without saying for which registry, and means Docker Hub.
  if (mirror.defaultUpstream !== 'docker.io')
    refuse(
      `Docker would get images of ${mirror.defaultUpstream} for those of Docker Hub: registry-mirrors are for Docker Hub ` +
        'only, and the mirror takes requests without a name for its defaultUpstream.',
      ['Remove "defaultUpstream" from mirror.yaml, then: mirror up'],
    )
  if (new URL(mirror.cache).pathname !== '/')
    refuse(`dockerd takes no mirror with a path: ${mirror.cache}`, ['Give --mirror without one'])
  if (!mirror.fallback)
    refuse('dockerd always goes to Docker Hub when its mirrors fail: it cannot be told otherwise.', [
      'Leave --no-fallback away',
    ])
}

function sayForm(form: DockerForm, { cache }: MirrorForClient, { version, imageStore }: DockerTarget): string {
  const { host } = new URL(cache)
  const what = `Docker${version === undefined ? '' : ` ${version}`}`
  const others = `Other registries: docker pull ${host}/ghcr.io/OWNER/IMAGE, or Docker 28 with the containerd image store.`
  switch (form) {
    case 'folders':
      return `${what} with the containerd image store: every registry comes through the mirror, with no restart.`
    case 'mirrors': {
      const why = imageStore === 'classic' ? ' with the classic image store' : ''
      return `${what}${why} mirrors Docker Hub only. ${others}`
    }
    case 'both':
      return (
        'It is a guess which form this Docker understands, so both are written: registry-mirrors for Docker Hub, and a ' +
        'folder per registry for Docker 28 and later with the containerd image store.'
      )
  }
}
