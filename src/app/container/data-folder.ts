import type { Surroundings } from '../../config/paths.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ContainerEngine } from '../../docker/engine.ts'
import { volumeName } from '../../daemon/container/spec.ts'
import { hostOf } from '../../docker/endpoint.ts'

/** Throws a MirrorError (exit 2) when a folder is asked for that would be another machine's. */
export function refuseFolderElsewhere(
  { endpoint, isElsewhere }: Pick<ContainerEngine, 'endpoint' | 'isElsewhere'>,
  env: Surroundings['env'],
): void {
  if (!isElsewhere || !env['MIRROR_DATA']) return
  throw new MirrorError(
    `With the Docker engine at ${hostOf(endpoint)} there is no --data: the folder would be that machine's, and whose it is there is not known here.`,
    { exit: exitCode.usage, hints: [`leave --data out: the volume ${volumeName} of that engine keeps what is cached`] },
  )
}
