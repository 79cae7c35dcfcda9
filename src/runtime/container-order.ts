import type { Clock } from '../lib/time.ts'
import type { ContainerWish } from '../daemon/container/spec.ts'
import type { ContainerState } from '../docker/engine.ts'

/** A container that is to be there, and whoever waits for it. */
export interface ContainerOrder {
  readonly wish: ContainerWish
  /** Which mirror it is: a new one in a container that is made. */
  readonly instance: string
  /** A tar archive of the files that are handed over, for the data folder. */
  readonly handed: Buffer
  readonly clock: Clock
  /** Ends the attempt; whatever was there before is put back first. */
  readonly signal: AbortSignal
  /** The last step, once the mirror in it answers. Where it fails, all of it has failed. */
  readonly settle: (container: ContainerState) => Promise<void>
  /** The mirror that was to be replaced runs again; free ports may be other ones now. */
  readonly putBack: (container: ContainerState) => Promise<void>
}
