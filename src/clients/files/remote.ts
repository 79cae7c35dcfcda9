import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { CommandResult } from '../../lib/process.ts'
import type { FilePort } from '../file-port.ts'
import { plainConfigMap } from '../local-registry-hosting.ts'
import { shellFiles } from '../shell-files.ts'

/** One place of several: files, by the first folder of their path. */
export interface FilesByFolder {
  readonly [folder: string]: FilePort
}

/** Files that lie in several places, as one tree with a folder for each. */
export function joinedFiles(places: FilesByFolder): FilePort {
  const at = (path: string) => {
    const [, folder, ...rest] = path.split('/')
    const files = places[folder!]
    if (files === undefined) throw new Error(`${path} is in none of ${Object.keys(places).join(', ')}`)
    return { files, inside: `/${rest.join('/')}`, outside: (path: string) => `/${folder}${path}` }
  }
  const on =
    <R, A extends unknown[]>(act: (files: FilePort, path: string, ...args: A) => Promise<R>) =>
    (path: string, ...args: A) => {
      const { files, inside } = at(path)
      return act(files, inside, ...args)
    }
  return {
    read: on((files, path) => files.read(path)),
    async list(folder) {
      const { files, inside, outside } = at(folder)
      return (await files.list(inside)).map(outside)
    },
    async write(path, content, attributes) {
      const { files, inside, outside } = at(path)
      return (await files.write(inside, content, attributes)).map(outside)
    },
    remove: on((files, path) => files.remove(path)),
    mayWrite: on((files, path) => files.mayWrite(path)),
    tidy: on(async (files, path) => files.tidy?.(path)),
    removeFolder: on((files, path) => files.removeFolder(path)),
  }
}

/** Runs a program where the files are. */
type Exec = (args: readonly string[], input?: string) => Promise<CommandResult | undefined>

/** The files of a node. */
export function nodeFiles(name: string, exec: Exec): FilePort {
  return shellFiles(`the node ${name}`, async (script) => orGone(await exec(['sh'], script)))
}

/** A node or cluster that was deleted has nothing to be read or taken back any more, which is no failure. */
function orGone(result: CommandResult | undefined): CommandResult | undefined {
  const isGone = result?.exitCode !== 0 && /no such container|context .* does not exist/i.test(result?.stderr ?? '')
  return isGone ? { exitCode: 0, stdout: '', stderr: '' } : result
}

/**
 * One ConfigMap of a cluster as a file, so that it is shown, backed up and put back like all else. `kubectl` runs the program
 * with its arguments.
 */
export function configMapFile(name: string, namespace: string, kubectl: Exec): FilePort {
  const where = ['configmap', name, '--namespace', namespace, '--ignore-not-found']
  return {
    async read() {
      const text = await said(['get', ...where, '--output', 'yaml'])
      if (text.trim() === '') return undefined
      return { bytes: Buffer.from(plainConfigMap(text)), mode: 0o644, uid: 0, gid: 0 }
    },
    async list() {
      return []
    },
    async write(_path, content) {
      await said(['apply', '--filename', '-'], Buffer.from(content).toString())
      return []
    },
    async remove() {
      await said(['delete', ...where])
    },
    async mayWrite() {
      return true
    },
    async removeFolder() {},
  }

  async function said(args: readonly string[], input?: string): Promise<string> {
    const result = orGone(await kubectl(args, input))
    if (result?.exitCode === 0) return result.stdout
    const why = result?.stderr.trim().split('\n').at(-1)
    throw new MirrorError(`kubectl cannot get at the cluster${why ? `: ${why}` : '.'}`, { exit: exitCode.missing })
  }
}
