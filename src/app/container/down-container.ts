import { MirrorError } from '../../lib/errors.ts'
import { containerName, nameBefore, ownerOf, volumeName } from '../../daemon/container/spec.ts'
import { removeContainer } from '../../daemon/container/reconcile.ts'
import { findOurs } from '../../runtime/find-ours.ts'
import { DockerError, type ContainerEngine } from '../../docker/engine.ts'

/**
 * Ends and removes the container of the mirror with this state folder, and one that an `up` which was cut off has put aside;
 * false when there was none. Throws a MirrorError for a container of that name that is another's.
 */
export async function downContainer(engine: ContainerEngine, owner: string): Promise<boolean> {
  const found = await findOurs(engine, owner)
  const aside = await engine.containers.find(nameBefore)
  const ours = aside !== undefined && ownerOf(aside) === owner ? [found, aside] : [found]
  for (const container of ours) if (container !== undefined) await removeContainer(engine, container.id)
  return ours.some((container) => container !== undefined)
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
