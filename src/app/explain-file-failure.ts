import { isAbsolute, relative, sep } from 'node:path'
import { mirrorPaths, type Surroundings } from '../config/paths.ts'
import { MirrorError } from '../lib/errors.ts'
import { describeFileFailure, tellFileFailure } from '../lib/system-errors.ts'

/** The failure of a file in words, with the next steps; undefined for any other failure. */
export function explainFileFailure(error: unknown, surroundings: Surroundings): MirrorError | undefined {
  const failure = describeFileFailure(error)
  const message = failure && tellFileFailure(error, failure)
  if (failure?.path === undefined || message === undefined) return undefined
  return new MirrorError(message, {
    hints: [...failure.next, ...elsewhere(failure.path, failure.owner, surroundings)],
    cause: error,
  })
}

/** How to use other files, where these are the mirror's own. */
function elsewhere(path: string, owner: string | undefined, surroundings: Surroundings): string[] {
  const { configFile, dataDir, stateDir } = mirrorPaths(surroundings)
  if (path === configFile && surroundings.env['MIRROR_CONFIG']) return ['--config FILE   (another file)']
  const isData = isBelow(path, dataDir)
  if (!isData && !isBelow(path, stateDir) && path !== configFile) return []
  const home = surroundings.env['MIRROR_HOME']
  if (isData && surroundings.env['MIRROR_DATA']) return ['mirror up --data DIR   (another folder)']
  if (!home) return ['export MIRROR_HOME=DIR   (another folder for all files of the mirror)']
  return [
    ...(owner === undefined ? [] : ['unset MIRROR_HOME   (your own mirror, at the usual place)']),
    'export MIRROR_HOME=DIR   (a folder of yours)',
  ]
}

function isBelow(path: string, folder: string): boolean {
  const way = relative(folder, path)
  return way === '' || (way !== '..' && !way.startsWith(`..${sep}`) && !isAbsolute(way))
}
