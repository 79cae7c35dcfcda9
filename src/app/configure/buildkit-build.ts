import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { RunCommand } from '../../lib/process.ts'
import { temporaryFolder } from '../../lib/fs.ts'

const buildMs = 90_000
const askMs = 10_000

/** Builds an image of nothing but this one by the builder in use, and keeps nothing of it. */
export async function tryBuild(image: string, runCommand: RunCommand): Promise<{ failed: string | undefined }> {
  const builder = await runCommand('docker', ['buildx', 'inspect'], { timeoutMs: askMs })
  if (builder === undefined) return { failed: 'there is no docker command' }
  if (builder.exitCode !== 0) return { failed: builder.stderr.trim() || 'buildx names no builder' }
  const driver = /^Driver:\s*(\S+)/m.exec(builder.stdout)?.[1]
  if (driver === undefined || driver === 'docker')
    return { failed: "the builder in use is dockerd's own, which reads the configuration of docker" }
  const folder = await temporaryFolder('mirror-build-')
  try {
    await writeFile(join(folder, 'Dockerfile'), `FROM ${image}\n`)
    const args = ['buildx', 'build', '--no-cache', '--pull', '--output', 'type=cacheonly', folder]
    const result = await runCommand('docker', args, { timeoutMs: buildMs })
    if (result?.exitCode === 0) return { failed: undefined }
    return { failed: result?.stderr.trim().split('\n').at(-1) ?? `the build took longer than ${buildMs / 1000} s` }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}
