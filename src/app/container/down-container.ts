import { MirrorError } from '../../lib/errors.ts'
import { containerName, volumeName } from '../../runtime/container-spec.ts'
import { findOurs, removeContainer } from '../../runtime/container.ts'
import { DockerError, type ContainerEngine } from '../../runtime/container-engine.ts'

/** Ends and removes the container of the mirror with this state folder; false when there was none. */
export async function downContainer(engine: ContainerEngine, owner: string): Promise<boolean> {
  if ((await findOurs(engine, owner)) === undefined) return false
  await removeContainer(engine)
  return true
}

/** Removes what is cached and pushed; false when there was nothing. Throws a MirrorError when something still uses it. */
export async function removeVolume({ volumes }: ContainerEngine): Promise<boolean> {
  if (!(await volumes.has(volumeName))) return false
  try {
    await volumes.remove(volumeName)
    return true
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`The volume ${volumeName} cannot be removed: ${error.message}.`, {
      hints: [`docker ps -a --filter volume=${volumeName}`, `docker rm -f ${containerName}`],
      cause: error,
    })
  }
}
