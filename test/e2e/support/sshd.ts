import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { startDaemon } from './daemon.ts'
import { dockerSocket } from './dockerd.ts'
import type { NetworkNamespace } from './network-namespace.ts'
import { otherAddress } from './other-machine.ts'
import { run } from './run.ts'
import type { Stage } from './scene.ts'

const port = 2222

export interface Sshd {
  /** The DOCKER_HOST of the engine behind it. */
  host: string
  /** A folder for PATH with an ssh that has a key for it. */
  withKey: string
  /** A folder for PATH with an ssh whose key it does not know. */
  withStrangeKey: string
}

/** Starts Debian's sshd on the stage with new keys, for the user who runs the tests. It ends with the test. */
export async function startSshd({ folder, namespace }: Stage, from: NetworkNamespace): Promise<Sshd> {
  const home = join(folder, 'sshd')
  await mkdir(home, { mode: 0o700 })
  const keys = ['host', 'known', 'strange']
  for (const key of keys) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home, key)])
  const config = join(home, 'sshd_config')
  await writeFile(
    config,
    [
      `ListenAddress ${otherAddress}:${port}`,
      `HostKey ${join(home, 'host')}`,
      `AuthorizedKeysFile ${join(home, 'known.pub')}`,
      `SetEnv DOCKER_HOST=unix://${dockerSocket(folder)}`,
      'PidFile none',
      'PasswordAuthentication no',
      'PermitRootLogin prohibit-password',
      // Allows a folder below one to which every user can write.
      'StrictModes no',
      'UsePAM no',
      '',
    ].join('\n'),
  )
  const [withKey, withStrangeKey] = await Promise.all(['known', 'strange'].map((key) => makeClient(home, key)))
  const daemon = await startDaemon({
    command: namespace.enterApart(['sh', '-c', 'mkdir -m 755 /run/sshd; exec /usr/sbin/sshd -D -e -f "$0"', config]),
    env: { PATH: process.env['PATH'] },
    logFile: join(home, 'log'),
    ready: async () => {
      const [file, ...args] = from.enter([join(withKey!, 'ssh'), '-p', String(port), `root@${otherAddress}`, 'true'])
      await run(file!, args)
    },
  })
  onTestFinished(daemon.stop)
  return { host: `ssh://root@${otherAddress}:${port}`, withKey: withKey!, withStrangeKey: withStrangeKey! }
}

/** Creates an ssh with its own configuration file, because ssh reads the one in the real home of the user. */
async function makeClient(home: string, key: string): Promise<string> {
  const folder = join(home, `with-${key}`)
  await mkdir(folder)
  const options = [
    `IdentityFile ${join(home, key)}`,
    'IdentitiesOnly yes',
    'IdentityAgent none',
    'BatchMode yes',
    'StrictHostKeyChecking no',
    `UserKnownHostsFile ${join(folder, 'known_hosts')}`,
    'LogLevel ERROR',
  ]
  await writeFile(join(folder, 'config'), `${options.join('\n')}\n`)
  const program = `#!/bin/sh\nexec /usr/bin/ssh -F ${join(folder, 'config')} "$@"\n`
  await writeFile(join(folder, 'ssh'), program, { mode: 0o755 })
  return folder
}
