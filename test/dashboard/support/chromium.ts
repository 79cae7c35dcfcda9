import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { run } from '../../e2e/support/run.ts'

const paths = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome']

export function findChromium(): string | undefined {
  return paths.find((path) => existsSync(path))
}

/** Installs the Chromium of Debian; undefined where that is not possible. */
export async function installChromium(): Promise<string | undefined> {
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (process.getuid?.() !== 0 || !/^ID=debian$/m.test(release)) return undefined
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' }
  const install = ['-qq', '--yes', '--no-install-recommends', '-o', 'Dpkg::Use-Pty=0', 'install']
  await run('apt-get', ['-qq', 'update'], { env, timeoutMs: 300_000 })
  await run('apt-get', [...install, 'chromium', 'fonts-dejavu-core'], { env, timeoutMs: 600_000 })
  return findChromium()
}
