import { run } from './run.ts'

export interface NetworkNamespace {
  name: string
  /** Returns the command line that runs the given one with this namespace's network. */
  enter(command: readonly string[]): string[]
  /** Does the same with a separate /etc, /run, /dev/shm and /var/lib/containers, deleted with the last process. */
  enterApart(command: readonly string[]): string[]
  /** Ends all processes in the namespace, and removes it. */
  remove(): Promise<void>
}

// Mounts empty folders over the fixed paths at which programs keep sockets, locks, keys and notes about blobs, because
// programs of this machine may use them too.
const standApart = `set -e
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/etc /run/etc-work
mkdir -p -m 700 /var/lib/containers
mount -t tmpfs tmpfs /var/lib/containers
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work overlay /etc
exec "$@"`

/** Creates a separate network with its own 127.0.0.1 and port numbers, and without a route to other networks. */
export async function addNetworkNamespace(name: string): Promise<NetworkNamespace> {
  // Avoids `ip netns exec`, which would mount a /sys without cgroups.
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

/** Kills a process, which may already have ended. */
export function killIfAlive(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
