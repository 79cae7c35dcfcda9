import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { looksAtOwners, mirrorPaths, type Surroundings } from '../../config/paths.ts'
import { orAbsent } from '../../lib/fs.ts'
import { isOnlyRoots } from '../../lib/ownership.ts'
import { shellWord } from '../../lib/process.ts'
import { findInvokingUser } from '../../admin/find-mirror.ts'

/**
 * As root: which records root has left where another user can change them, as older versions did under `sudo -E`, and how to undo
 * what they say. Undefined where there are none. Nothing of them is obeyed.
 */
export async function describeStrayRecords(surroundings: Surroundings): Promise<string | undefined> {
  if (!looksAtOwners(surroundings)) return undefined
  const user = await findInvokingUser(surroundings)
  const callers = surroundings.callers ?? surroundings
  const candidates = [
    mirrorPaths(callers),
    mirrorPaths({ ...callers, env: { ...callers.env, MIRROR_HOME: undefined } }),
    ...(user === undefined ? [] : [mirrorPaths({ ...surroundings, env: {}, homedir: user.home })]),
  ]
  for (const { stateDir } of candidates) {
    const folder = join(stateDir, 'configured')
    if (isOnlyRoots(folder)) continue
    const names = await rootsRecordsIn(folder)
    if (names.length === 0) continue
    const [records, backups] = [shellWord(folder), shellWord(join(stateDir, 'backups'))]
    return [
      `Root has recorded in ${folder} what it configured, and others can change that, so it is not used: ${names.join(', ')}.`,
      'To undo it, look at what was changed and where its backup lies, put the backup back, then remove the records:',
      `  sudo cat ${records}/*.json`,
      `  sudo ls -lR ${backups}`,
      `  sudo rm -r ${records} ${backups}`,
    ].join('\n')
  }
  return undefined
}

/** The clients of records that are root's own files. */
async function rootsRecordsIn(folder: string): Promise<string[]> {
  const names = (await orAbsent(() => readdir(folder))) ?? []
  const found: string[] = []
  for (const name of names) {
    const client = /^([a-z0-9]+)-[0-9a-f]+\.json$/.exec(name)?.[1]
    const what = client === undefined ? undefined : await orAbsent(() => lstat(join(folder, name)))
    if (what?.isFile() && what.uid === 0) found.push(client!)
  }
  return [...new Set(found)].toSorted()
}
