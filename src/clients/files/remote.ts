import { posix } from 'node:path'
import { parse, stringify } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { type CommandResult, quoteShellWord } from '../../lib/process.ts'
import type { FilePort } from '../types.ts'

/** Runs a script by a POSIX shell where the files are, as a user who can write them; undefined if it cannot run there. */
type RunScript = (script: string) => Promise<CommandResult | undefined>

/**
 * Accesses files that only a shell reaches, such as those of a virtual machine. `where` names it in errors: `the podman machine
 * dev`. Throws a MirrorError (missing) where the shell fails.
 */
export function createShellFiles(where: string, runScript: RunScript): FilePort {
  return {
    async read(path) {
      const file = quoteShellWord(path)
      const output = await run(`[ -f ${file} ] || exit 0; stat -L -c '%a %u %g' ${file} && base64 ${file}`)
      const [attributes, ...lines] = output.split('\n')
      if (!attributes) return undefined
      const [mode, uid, gid] = attributes.split(' ')
      const bytes = Buffer.from(lines.join(''), 'base64')
      return { bytes, mode: Number.parseInt(mode!, 8), uid: Number(uid), gid: Number(gid) }
    },

    async list(folder) {
      const at = quoteShellWord(folder)
      const output = await run(`[ -d ${at} ] || exit 0; find -L ${at} -maxdepth 5 -type f -print0 | base64`)
      return Buffer.from(output, 'base64').toString().split('\0').filter(Boolean).toSorted()
    },

    async write(path, content, attributes) {
      const created = await run(
        [
          `file=$(readlink -m ${quoteShellWord(path)}); folder=$(dirname "$file")`,
          // Print the folders that it makes, outermost first.
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
      return created.split('\n').filter(Boolean)
    },

    async remove(path) {
      await run(`rm -f "$(readlink -m ${quoteShellWord(path)})"`)
    },

    async mayWrite() {
      return true
    },

    async removeFolder(path) {
      await run(`rmdir ${quoteShellWord(path)} 2>/dev/null || true`)
    },
  }

  async function run(script: string): Promise<string> {
    const result = await runScript(`set -e\n${script}\n`)
    if (result?.exitCode === 0) return result.stdout
    const reason = result?.stderr.trim().split('\n').at(-1)
    throw new MirrorError(`Cannot access files in ${where}${reason ? `: ${reason}` : '.'}`, { exit: exitCode.missing })
  }
}

/** Maps the first folder of a path to its file port. */
interface FilesByFolder {
  readonly [folder: string]: FilePort
}

/** Joins several file ports to one tree with a folder for each. */
export function joinFilePorts(ports: FilesByFolder): FilePort {
  const findPort = (path: string) => {
    const [, folder, ...rest] = path.split('/')
    const files = ports[folder!]
    if (files === undefined) throw new Error(`${path} is in none of ${Object.keys(ports).join(', ')}`)
    return { files, innerPath: `/${rest.join('/')}`, toJoinedPath: (inner: string) => `/${folder}${inner}` }
  }
  const forward =
    <R, A extends unknown[]>(act: (files: FilePort, path: string, ...args: A) => Promise<R>) =>
    (path: string, ...args: A) => {
      const { files, innerPath } = findPort(path)
      return act(files, innerPath, ...args)
    }
  return {
    read: forward((files, path) => files.read(path)),
    async list(folder) {
      const { files, innerPath, toJoinedPath } = findPort(folder)
      return (await files.list(innerPath)).map(toJoinedPath)
    },
    async write(path, content, attributes) {
      const { files, innerPath, toJoinedPath } = findPort(path)
      return (await files.write(innerPath, content, attributes)).map(toJoinedPath)
    },
    remove: forward((files, path) => files.remove(path)),
    mayWrite: forward((files, path) => files.mayWrite(path)),
    describeLoss: forward(async (files, path) => files.describeLoss?.(path)),
    tidy: forward(async (files, path) => files.tidy?.(path)),
    removeFolder: forward((files, path) => files.removeFolder(path)),
  }
}

/** Puts one file of another port into a tree, at `at`. */
export function overlayFile(files: FilePort, at: string, file: FilePort): FilePort {
  const choosePort = (path: string) => (path === at ? file : files)
  return {
    read: (path) => choosePort(path).read(path),
    list: (folder) => files.list(folder),
    write: (path, content, attributes) => choosePort(path).write(path, content, attributes),
    remove: (path) => choosePort(path).remove(path),
    mayWrite: (path) => choosePort(path).mayWrite(path),
    describeLoss: async (path) => choosePort(path).describeLoss?.(path),
    tidy: async (path) => choosePort(path).tidy?.(path),
    removeFolder: (path) => files.removeFolder(path),
  }
}

/** Runs a program where the files are; undefined if it cannot run there. */
type Exec = (args: readonly string[], input?: string) => Promise<CommandResult | undefined>

/** Accesses the files of a cluster's node. `exec` runs a program in it. */
export function createNodeFiles(name: string, exec: Exec): FilePort {
  return createShellFiles(`the node ${name}`, async (script) => ignoreDeleted(await exec(['sh'], script)))
}

/** Turns the failure of a command in a deleted node or cluster into success without output: there is nothing to read or undo. */
function ignoreDeleted(result: CommandResult | undefined): CommandResult | undefined {
  const isDeleted = result?.exitCode !== 0 && /no such container|context .* does not exist/i.test(result?.stderr ?? '')
  return isDeleted ? { exitCode: 0, stdout: '', stderr: '' } : result
}

/**
 * Presents a ConfigMap of a cluster as a file, so that it is shown, backed up and restored like other files. `kubectl` runs kubectl
 * with arguments and standard input. Throws a MirrorError (missing) where kubectl fails.
 */
export function createConfigMapFile(name: string, namespace: string, kubectl: Exec): FilePort {
  const where = ['configmap', name, '--namespace', namespace, '--ignore-not-found']
  return {
    async read() {
      const text = await run(['get', ...where, '--output', 'yaml'])
      if (text.trim() === '') return undefined
      return { bytes: Buffer.from(cleanConfigMap(text)), mode: 0o644, uid: 0, gid: 0 }
    },
    async list() {
      return []
    },
    async write(_path, content) {
      await run(['apply', '--filename', '-'], Buffer.from(content).toString())
      return []
    },
    async remove() {
      await run(['delete', ...where])
    },
    async mayWrite() {
      return true
    },
    async removeFolder() {},
  }

  async function run(args: readonly string[], input?: string): Promise<string> {
    const result = ignoreDeleted(await kubectl(args, input))
    if (result?.exitCode === 0) return result.stdout
    const reason = result?.stderr.trim().split('\n').at(-1)
    throw new MirrorError(`kubectl cannot reach the cluster${reason ? `: ${reason}` : '.'}`, { exit: exitCode.missing })
  }
}

/** Removes the fields that the cluster itself adds to a ConfigMap. */
function cleanConfigMap(yaml: string): string {
  return renderConfigMap(parse(yaml) as ConfigMap)
}

interface ConfigMap {
  readonly metadata?: { readonly labels?: Readonly<Record<string, string>> }
  readonly data?: Readonly<Record<string, string>>
}

/** Renders the ConfigMap `local-registry-hosting` as YAML. */
export function renderConfigMap({ metadata, data }: ConfigMap): string {
  const labels = metadata?.labels
  const all = { ...registryConfigMap, ...(labels && { labels }) }
  return stringify({ apiVersion: 'v1', kind: 'ConfigMap', metadata: all, data: data ?? {} }, { lineWidth: 0 })
}

/** Names the ConfigMap in which Tilt, skaffold and others look up the registry of a cluster. */
export const registryConfigMap = { name: 'local-registry-hosting', namespace: 'kube-public' } as const
