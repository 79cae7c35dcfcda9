import { readFile, readdir, readlink } from 'node:fs/promises'
import { basename } from 'node:path'
import { ifVisible } from '../lib/if-visible.ts'
import type { RunCommand } from '../lib/run-command.ts'

/** Who listens on a TCP port. */
export interface PortHolder {
  pid: number
  /** `nginx`, or a script's name after its interpreter: `node server.js`. */
  command: string
}

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
      if (inode !== undefined && inodes.has(inode)) return { pid: Number(pid), command: await commandOf(pid) }
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
