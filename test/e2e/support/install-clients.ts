import { existsSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { run } from './run.ts'

const packages = [
  'docker.io',
  'containerd',
  'runc',
  'podman',
  'skopeo',
  'buildah',
  'mmdebstrap',
  'busybox-static',
  'iproute2',
  'iptables',
  'openssh-client',
  'openssh-server',
  'strace',
  'faketime',
  'zsh',
  'fish',
]
const policyFile = '/usr/sbin/policy-rc.d'

/** Installs the missing clients of Debian 12, without a start of their services. */
export async function installClients(): Promise<void> {
  const missing: string[] = []
  for (const name of packages) {
    const status = await run('dpkg-query', ['-W', '-f', '${db:Status-Status}', name]).catch(() => 'unknown')
    if (status !== 'installed') missing.push(name)
  }
  if (missing.length === 0) return
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  await run('apt-get', ['-qq', 'update'], { env, timeoutMs: 300_000 })
  // Prevents the start of the packages' services, because the tests start their own and must not change the machine.
  const ownPolicy = !existsSync(policyFile)
  if (ownPolicy) await writeFile(policyFile, '#!/bin/sh\nexit 101\n', { mode: 0o755, flag: 'wx' })
  try {
    const install = ['-qq', '--yes', '--no-install-recommends', '-o', 'Dpkg::Use-Pty=0', 'install', ...missing]
    // Finishes the packages that an interrupted run left half installed, because apt-get refuses to work beside them.
    await run('dpkg', ['--configure', '-a'], { env, timeoutMs: 600_000 })
    await run('apt-get', install, { env, timeoutMs: 600_000 })
  } finally {
    if (ownPolicy) await rm(policyFile)
  }
}
