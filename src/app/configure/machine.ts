import { resolve } from 'node:path'
import { mirrorPaths, type Surroundings } from '../../config/paths.ts'
import { runCommand } from '../../lib/process.ts'
import type { Machine } from '../../clients/types.ts'
import { findRecordFolders } from './record-folders.ts'

/** The machine as clients' adapters see it; `root`: the folder that stands for `/` and `~`, and then nobody is spoken to. */
export async function machineAt(surroundings: Surroundings, root: string | undefined): Promise<Machine> {
  const { platform, env, homedir, cwd } = surroundings
  const { stateDir } = mirrorPaths(surroundings)
  const below = root === undefined ? undefined : resolve(cwd, root)
  return {
    platform,
    env,
    home: below ?? homedir,
    root: below ?? '/',
    detached: below !== undefined,
    cwd,
    stateDir,
    records: await findRecordFolders(surroundings),
    runCommand,
  }
}
