import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, inject, test } from 'vitest'
import { run } from './support/run.ts'

const { missing, newer } = inject('e2e')
const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))

describe.skipIf(missing !== undefined)('mirror init --template', () => {
  test('mirror init --template compose prints a file that Docker Compose understands', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'mirror-e2e-templates-'))
    try {
      const file = join(folder, 'compose.yaml')
      await writeFile(file, await run(process.execPath, [program, 'init', '--template', 'compose']))
      const compose = join(newer, 'usr/libexec/docker/cli-plugins/docker-compose')
      const read = JSON.parse(await run(compose, ['--file', file, 'config', '--format', 'json']))
      expect(read.services.mirror).toMatchObject({ mem_limit: '536870912', read_only: true, user: '1000:1000' })
      expect(read.services.mirror.ports.map(({ host_ip: address }: { host_ip: string }) => address)).toEqual([
        '127.0.0.1',
        '127.0.0.1',
        '127.0.0.1',
      ])
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
