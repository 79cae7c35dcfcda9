import { stringify } from '@iarna/toml'

export interface HostsFile {
  /** The registry's own address, which is asked last; undefined leaves it to the client. */
  readonly server?: string
  readonly mirror: string
  /** Paths of certificates that were in use for this registry. */
  readonly ca?: readonly string[]
}

const header = '# Written by mirror. To take it back: mirror configure --undo\n'

/**
 * A registry's hosts.toml: the mirror first, for reading only, or pushes would go to it as well.
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function renderHostsToml({ server, mirror, ca }: HostsFile): string {
  return (
    header +
    stringify({
      ...(server !== undefined && { server }),
      ...(ca !== undefined && { ca: [...ca] }),
      host: { [mirror]: { capabilities: ['pull', 'resolve'] } },
    })
  )
}
