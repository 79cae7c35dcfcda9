import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { ifVisible } from '../lib/fs.ts'
import { parseObject } from '../lib/json.ts'
import { packageRoot } from '../lib/package-root.ts'
import type { RunCommand } from '../lib/process.ts'

/** Who listens on a TCP port. */
export interface PortHolder {
  pid: number
  /** `nginx`, or a script's name after its interpreter: `node server.js`. */
  command: string
  /** Undefined for what is no mirror, and where the platform does not tell. */
  mirror?: OtherMirror
}

/** Which mirror a process serves: that of a MIRROR_HOME, or of the usual places; unknown where its variables may not be read. */
export type OtherMirror = { readonly home: string } | 'usual' | 'unknown'

export interface PortHolderOptions {
  platform: string
  runCommand: RunCommand
}

/** The process that listens on the port, as far as this user may see; undefined when that is not told. */
export async function findPortHolder(port: number, options: PortHolderOptions): Promise<PortHolder | undefined> {
  if (options.platform === 'linux') return findInProc(port)
  if (options.platform === 'darwin') return askLsof(port, options.runCommand)
  return undefined
}

async function findInProc(port: number): Promise<PortHolder | undefined> {
  const inodes = new Set([
    ...(await listeningInodes('/proc/net/tcp', port)),
    ...(await listeningInodes('/proc/net/tcp6', port)),
  ])
  if (inodes.size === 0) return undefined
  for (const pid of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(pid)) continue
    for (const fd of (await ifVisible(readdir(`/proc/${pid}/fd`))) ?? []) {
      const target = await ifVisible(readlink(`/proc/${pid}/fd/${fd}`))
      const inode = /^socket:\[(\d+)\]$/.exec(target ?? '')?.[1]
      if (inode !== undefined && inodes.has(inode)) {
        const mirror = await mirrorOf(pid)
        return { pid: Number(pid), command: await commandOf(pid), ...(mirror !== undefined && { mirror }) }
      }
    }
  }
  return undefined
}

/** proc(5), /proc/net/tcp: `sl local:port remote:port st … inode`, in hexadecimal; state 0A listens. */
async function listeningInodes(table: string, port: number): Promise<string[]> {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  const lines = ((await ifVisible(readFile(table, 'utf8'))) ?? '').split('\n').slice(1)
  return lines.flatMap((line) => {
    const fields = line.trim().split(/\s+/)
    return fields[1]?.endsWith(`:${wanted}`) && fields[3] === '0A' ? [fields[9]!] : []
  })
}

/** Recognizes `node … bin/run.js serve` of a package with our name. */
async function mirrorOf(pid: string): Promise<OtherMirror | undefined> {
  const [, ...args] = ((await ifVisible(readFile(`/proc/${pid}/cmdline`, 'utf8'))) ?? '').split('\0')
  const at = args.findIndex((argument) => argument !== '' && !argument.startsWith('-'))
  if (at === -1 || !['serve', 'up'].includes(args[at + 1] ?? '')) return undefined
  const cwd = (await ifVisible(readlink(`/proc/${pid}/cwd`))) ?? '/'
  const script = await ifVisible(realpath(resolve(cwd, args[at]!)))
  if (script === undefined) return undefined
  const name = await packageName(dirname(dirname(script)))
  if (name === undefined || name !== (await packageName(packageRoot()))) return undefined
  const variables = (await ifVisible(readFile(`/proc/${pid}/environ`, 'utf8')))?.split('\0')
  if (variables === undefined) return 'unknown'
  const home = variables.find((variable) => variable.startsWith('MIRROR_HOME='))?.slice('MIRROR_HOME='.length)
  return home ? { home: resolve(cwd, home) } : 'usual'
}

async function packageName(root: string): Promise<unknown> {
  return parseObject((await ifVisible(readFile(join(root, 'package.json'), 'utf8'))) ?? '')?.['name']
}

/** The program and, for an interpreter, its script; never the other arguments, which may hold secrets. */
async function commandOf(pid: string): Promise<string> {
  const [program = '', ...args] = ((await ifVisible(readFile(`/proc/${pid}/cmdline`, 'utf8'))) ?? '').split('\0')
  const name = basename(program) || 'unknown'
  if (!/^(node|python[\d.]*|ruby|perl|java|bun|deno)$/.test(name)) return name
  const script = args.find((argument) => argument !== '' && !argument.startsWith('-'))
  return script === undefined ? name : `${name} ${basename(script)}`
}

/** lsof -F prints one field a line: `p<pid>`, `c<command>`. */
async function askLsof(port: number, runCommand: RunCommand): Promise<PortHolder | undefined> {
  const result = await runCommand('lsof', ['-nP', `-iTCP:${port}`, '-sTCP:LISTEN', '-Fpc'], { timeoutMs: 5000 })
  if (result?.exitCode !== 0) return undefined
  const field = (letter: string) =>
    result.stdout
      .split('\n')
      .find((line) => line.startsWith(letter))
      ?.slice(1)
  const pid = Number(field('p'))
  return Number.isSafeInteger(pid) && pid > 0 ? { pid, command: field('c') ?? 'unknown' } : undefined
}
