import { posix } from 'node:path'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { type CommandResult, shellWord } from '../lib/process.ts'
import type { FilePort } from './file-port.ts'

/** Runs a script by a POSIX shell where the files are, as one who may write them; undefined when there is no way there. */
export type RunScript = (script: string) => Promise<CommandResult | undefined>

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
