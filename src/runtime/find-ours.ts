import type { ContainerEngine, ContainerState } from '../docker/engine.ts'
import { MirrorError } from '../lib/errors.ts'
import { containerName, type nameBefore, ownerOf } from '../daemon/container/spec.ts'

/**
 * Our container; undefined when there is none. Throws a MirrorError when the name belongs to another one, which is left alone.
 * `name`: also of the one that was put aside.
 */
export async function findOurs(
  { containers }: Pick<ContainerEngine, 'containers'>,
  owner: string,
  name: typeof containerName | typeof nameBefore = containerName,
): Promise<ContainerState | undefined> {
  const found = await containers.find(name)
  if (found === undefined || ownerOf(found) === owner) return found
  const whose = ownerOf(found)
  if (whose === undefined)
    throw new MirrorError(`There is a container named ${name} that is not ours; it was left as it is.`, {
      hints: [`docker rename ${name} another-name`, `docker rm -f ${name}   (if nobody needs it)`],
    })
  throw new MirrorError(`The container ${name} is another mirror's, with its state in ${whose}.`, {
    hints: ['Stop it from there: MIRROR_HOME=… mirror down', 'Use that mirror: MIRROR_HOME=… mirror status'],
  })
}
