import { readFile } from 'node:fs/promises'

/** Lists the IPv4 addresses with a listener at the port, in the network of the process, sorted. See proc_pid_net(5). */
export async function listeningAddresses(pid: number, port: number): Promise<string[]> {
  const table = await readFile(`/proc/${pid}/net/tcp`, 'utf8')
  const listening = '0A'
  return table
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(
      ([, local, , state]) => state === listening && local?.endsWith(port.toString(16).toUpperCase().padStart(4, '0')),
    )
    .map(([, local]) => dotted(local!))
    .toSorted()
}

/** Decodes an address: `0100007F:13BF` is 127.0.0.1, in the byte order of both supported architectures. */
function dotted(local: string): string {
  return Buffer.from(local.slice(0, 8), 'hex').toReversed().join('.')
}
