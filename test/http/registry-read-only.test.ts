import { chmod, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { startTestRegistry } from '../support/registry.ts'

/** Lists all folders below one, and that one. */
async function foldersBelow(root: string): Promise<string[]> {
  const found = await readdir(root, { recursive: true, withFileTypes: true })
  return [root, ...found.filter((entry) => entry.isDirectory()).map((entry) => join(entry.parentPath, entry.name))]
}

// Skips root, who can write to all folders.
test.skipIf(process.getuid === undefined || process.getuid() === 0)(
  'a registry whose folder may not be written to answers every change with a 507 and the reason, and serves what it has',
  async () => {
    const registry = await startTestRegistry()
    const image = makeImage()
    await registry.push('app', 'v1', image)
    const upload = await registry.begin('app')
    const folders = await foldersBelow(join(registry.home, 'data'))
    const give = async (mode: number) => {
      for (const folder of folders) await chmod(folder, mode)
    }
    onTestFinished(() => give(0o700))
    await give(0o500)
    const body = Buffer.from('new')
    const whole = `/v2/app/blobs/uploads/?digest=${computeDigest(body)}`
    const answers = [
      await registry.ask('POST', '/v2/app/blobs/uploads/'),
      await registry.ask('POST', whole, { body }),
      await registry.ask('PATCH', upload, { body }),
      await registry.ask('PUT', `${upload}?digest=${computeDigest(body)}`, { body }),
      await registry.ask('POST', `/v2/other/blobs/uploads/?mount=${image.layers[0]}&from=app`),
      await registry.ask('DELETE', '/v2/app/manifests/v1'),
      await registry.ask('DELETE', `/v2/app/manifests/${image.digest}`),
      await registry.ask('DELETE', `/v2/app/blobs/${image.layers[0]}`),
    ]
    for (const answer of answers) {
      expectError(answer, 507, 'DENIED')
      expect(answer.body.toString()).toContain('no permission to write to its data folder')
    }
    expectContent(await registry.get('/v2/app/manifests/v1'), image.digest)
    await give(0o700)
    expect((await registry.ask('POST', whole, { body })).status).toBe(201)
  },
)
