import { run } from './run.ts'

export interface NetworkNamespace {
  name: string
  /** The command line that runs the given one with this namespace's network. */
  enter(command: readonly string[]): string[]
  /** The same, and what it mounts or writes to /etc, /run, /dev/shm and /var/lib/containers is gone with its last process. */
  enterApart(command: readonly string[]): string[]
  /** Ends whatever still runs in it, then it is gone. */
  remove(): Promise<void>
}

// Programs keep sockets, locks, keys and notes about blobs at fixed places of the system, where this machine's own ones may
// have theirs.
const standApart = `set -e
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/etc /run/etc-work
mkdir -p -m 700 /var/lib/containers
mount -t tmpfs tmpfs /var/lib/containers
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work overlay /etc
exec "$@"`

/** A network of its own: its own 127.0.0.1, its own port numbers, and no way out. */
export async function addNetworkNamespace(name: string): Promise<NetworkNamespace> {
  // `ip netns exec` would mount another /sys, without the cgroups.
  const enter = (command: readonly string[]) => ['nsenter', `--net=/run/netns/${name}`, ...command]
  await run('ip', ['netns', 'add', name])
  const [file, ...args] = enter(['sh', '-c', 'ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward'])
  await run(file!, args)
  return {
    name,
    enter,
    enterApart: (command) =>
      enter(['unshare', '--mount', '--propagation', 'private', 'sh', '-c', standApart, 'apart', ...command]),
    async remove() {
      const pids = (await run('ip', ['netns', 'pids', name])).split('\n').filter(Boolean)
      for (const pid of pids) killIfAlive(Number(pid))
      await run('ip', ['netns', 'delete', name])
    },
  }
}

/** Ends a process that may have ended by itself. */
export function killIfAlive(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
