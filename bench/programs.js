// Installs the programs of Debian that the benchmark uses beside the mirror.
import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'

const packages = ['docker-registry', 'nginx', 'wrk']
const policyFile = '/usr/sbin/policy-rc.d'

/** Installs missing programs if the benchmark runs as root on Debian. Returns the names of those that exist. */
export function installPrograms() {
  const missing = packages.filter((name) => !isThere(name))
  if (missing.length > 0 && process.getuid?.() === 0 && isThere('apt-get')) {
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
    // Prevent their services from starting on this machine.
    const isOurs = !existsSync(policyFile)
    if (isOurs) writeFileSync(policyFile, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
    try {
      spawnSync('apt-get', ['-qq', 'update'], { env, stdio: 'ignore' })
      spawnSync('apt-get', ['-qq', '--yes', '--no-install-recommends', 'install', ...missing], { env, stdio: 'ignore' })
    } finally {
      if (isOurs) rmSync(policyFile)
    }
  }
  return new Set(packages.filter(isThere))
}

/** @param {string} name */
export function versionOf(name) {
  const { stdout, stderr } = spawnSync(name, [name === 'docker-registry' ? '--version' : '-v'], { encoding: 'utf8' })
  return /\d+(?:\.\d+)+/.exec(`${stdout}${stderr}`)?.[0]
}

function isThere(name) {
  return spawnSync('sh', ['-c', `command -v ${name}`]).status === 0
}
