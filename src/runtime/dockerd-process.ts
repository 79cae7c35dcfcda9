import { readFile, readdir, readlink, realpath } from 'node:fs/promises'
import { basename, resolve } from 'node:path'
import { ifVisible } from '../lib/fs.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'

/** A dockerd of this machine. */
export interface DockerdProcess {
  readonly pid: number
  /** Its program; undefined when this user may not see it. */
  readonly program: string | undefined
  readonly args: readonly string[]
  /** What relative paths among its arguments start from; undefined when this user may not see it. */
  readonly folder: string | undefined
  /** Whether its network, and so its 127.0.0.1, is ours; undefined when this user may not see it. */
  readonly sharesNetwork: boolean | undefined
}

/**
 * The dockerd that listens at the endpoint, by proc(5); undefined where there is no /proc, for an engine on another machine or in
 * a virtual one, and when it cannot be told which of several it is.
 */
export async function findDockerd(endpoint: DockerEndpoint): Promise<DockerdProcess | undefined> {
  if (endpoint.kind !== 'socket') return undefined
  const paths = [endpoint.path, await ifVisible(realpath(endpoint.path))]
  const found: DockerdProcess[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const commandLine = await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))
    const [name = '', ...args] = (commandLine ?? '').split('\0').slice(0, -1)
    if (basename(name) === 'dockerd' && (await listens(entry, paths))) found.push(await look(Number(entry), args))
  }
  return found.length === 1 ? found[0] : undefined
}

/** A path among its arguments, as this process would open it. */
export function pathOf({ folder }: DockerdProcess, path: string): string {
  return resolve(folder ?? '/', path)
}

async function look(pid: number, args: string[]): Promise<DockerdProcess> {
  const linkOf = (name: string) => ifVisible(readlink(`/proc/${pid}/${name}`))
  const [program, folder, network, ours] = await Promise.all([
    linkOf('exe'),
    linkOf('cwd'),
    linkOf('ns/net'),
    ifVisible(readlink('/proc/self/ns/net')),
  ])
  return { pid, program, folder, args, sharesNetwork: network === undefined ? undefined : network === ours }
}

/** Whether one of the sockets at those paths, in its own network, is among its open files. */
async function listens(pid: string, paths: readonly (string | undefined)[]): Promise<boolean> {
  // Num RefCount Protocol Flags Type St Inode Path; flag 00010000 is that of one that listens.
  const lines = ((await ifVisible(readFile(`/proc/${pid}/net/unix`, 'utf8'))) ?? '').split('\n')
  const inodes = lines.flatMap((line) => {
    const fields = line.trim().split(/\s+/)
    return fields[3] === '00010000' && paths.includes(fields[7]) ? [fields[6]!] : []
  })
  if (inodes.length === 0) return false
  const files = await ifVisible(readdir(`/proc/${pid}/fd`))
  // Another user's: that its network has the socket is all there is to see.
  if (files === undefined) return true
  for (const file of files) {
    const target = await ifVisible(readlink(`/proc/${pid}/fd/${file}`))
    if (inodes.some((inode) => target === `socket:[${inode}]`)) return true
  }
  return false
}
