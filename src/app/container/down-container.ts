import { MirrorError } from '../../lib/errors.ts'
import { containerName, ownerOf, volumeName } from '../../runtime/container-spec.ts'
import { findOurs, removeContainer } from '../../runtime/container.ts'
import { DockerError, type ContainerEngine } from '../../runtime/container-engine.ts'

/** Ends and removes the container of the mirror with this state folder; false when there was none. */
export async function downContainer(engine: ContainerEngine, owner: string): Promise<boolean> {
  const found = await findOurs(engine, owner)
  if (found === undefined) return false
  await removeContainer(engine, found.id)
  return true
}

/**
 * Removes what is cached and pushed; false when there was nothing. Throws a MirrorError when something still uses it, and for
 * a volume that the mirror with this state folder has not made.
 */
export async function removeVolume({ volumes }: ContainerEngine, owner: string): Promise<boolean> {
  const found = await volumes.find(volumeName)
  if (found === undefined) return false
  const whose = ownerOf(found)
  if (whose !== owner)
    throw new MirrorError(
      whose === undefined
        ? `The volume ${volumeName} was not made by a mirror; it was left as it is.`
        : `The volume ${volumeName} is another mirror's, with its state in ${whose}; it was left as it is.`,
      { hints: [`docker volume rm ${volumeName}   (if nobody needs it)`] },
    )
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
