import { posix } from 'node:path'
import { parse, stringify } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { type CommandResult, shellWord } from '../../lib/process.ts'
import type { FilePort } from '../types.ts'

/** Runs a script by a POSIX shell where the files are, as one who may write them; undefined when there is no way there. */
type RunScript = (script: string) => Promise<CommandResult | undefined>

/** Files that only a shell reaches: in a virtual machine. `where` names it: `the podman machine dev`. */
export function shellFiles(where: string, runScript: RunScript): FilePort {
  return {
    async read(path) {
      const file = shellWord(path)
      const said = await run(`[ -f ${file} ] || exit 0; stat -L -c '%a %u %g' ${file} && base64 ${file}`)
      const [attributes, ...lines] = said.split('\n')
      if (!attributes) return undefined
      const [mode, uid, gid] = attributes.split(' ')
      const bytes = Buffer.from(lines.join(''), 'base64')
      return { bytes, mode: Number.parseInt(mode!, 8), uid: Number(uid), gid: Number(gid) }
    },

    async list(folder) {
      const at = shellWord(folder)
      const said = await run(`[ -d ${at} ] || exit 0; find -L ${at} -maxdepth 5 -type f -print0 | base64`)
      return Buffer.from(said, 'base64').toString().split('\0').filter(Boolean).toSorted()
    },

    async write(path, content, attributes) {
      const made = await run(
        [
          `file=$(readlink -m ${shellWord(path)}); folder=$(dirname "$file")`,
          // Outermost first, as they will have been made.
          `at=$folder; made=; while [ ! -d "$at" ]; do made="$at\n$made"; at=$(dirname "$at"); done`,
          `umask 022; mkdir -p "$folder"`,
          `temporary=$(mktemp "$folder/.${posix.basename(path).replaceAll(/[^\w.-]/g, '_')}.XXXXXXXX")`,
          `trap 'rm -f "$temporary"' EXIT`,
          `base64 -d > "$temporary" <<'END'\n${Buffer.from(content).toString('base64')}\nEND`,
          ...(attributes ? [`chown ${attributes.uid}:${attributes.gid} "$temporary"`] : []),
          `chmod ${(attributes?.mode ?? 0o644).toString(8)} "$temporary"`,
          `sync "$temporary"; mv "$temporary" "$file"; sync "$folder"`,
          `printf %s "$made"`,
        ].join('\n'),
      )
      return made.split('\n').filter(Boolean)
    },

    async remove(path) {
      await run(`rm -f "$(readlink -m ${shellWord(path)})"`)
    },

    async mayWrite() {
      return true
    },

    async removeFolder(path) {
      await run(`rmdir ${shellWord(path)} 2>/dev/null || true`)
    },
  }

  async function run(script: string): Promise<string> {
    const result = await runScript(`set -e\n${script}\n`)
    if (result?.exitCode === 0) return result.stdout
    const said = result?.stderr.trim().split('\n').at(-1)
    throw new MirrorError(`Nothing could be done in ${where}${said ? `: ${said}` : '.'}`, { exit: exitCode.missing })
  }
}

/** One place of several: files, by the first folder of their path. */
interface FilesByFolder {
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

/** A ConfigMap as a cluster tells it, without what the cluster itself keeps about it. */
function plainConfigMap(yaml: string): string {
  return renderConfigMap(parse(yaml) as ConfigMap)
}

interface ConfigMap {
  readonly metadata?: { readonly labels?: Readonly<Record<string, string>> }
  readonly data?: Readonly<Record<string, string>>
}

export function renderConfigMap({ metadata, data }: ConfigMap): string {
  const labels = metadata?.labels
  const all = { ...hostingConfigMap, ...(labels && { labels }) }
  return stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: all, data: data ?? {} }, { lineWidth: 0 })
}

/** Where Tilt, skaffold and others look up which registry a cluster pulls from. */
export const hostingConfigMap = { name: 'local-registry-hosting', namespace: 'kube-public' } as const
