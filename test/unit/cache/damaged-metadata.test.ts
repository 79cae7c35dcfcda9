import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openCacheMetadata } from '../../../src/cache/grants.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { anonymousIdentity, parseIdentity } from '../../../src/oci/registry.ts'
import { digestFor, setManifest, setTag } from '../../support/metadata.ts'
import { damageLog } from '../../support/metadata-log.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const repository = { host: 'docker.io', name: 'library/app' }

async function open(root: string) {
  const files = {
    folder: join(root, 'metadata'),
    previousFolder: join(root, 'repositories'),
    isNew: async () => true,
    setAside: () => join(root, 'aside'),
  }
  const metadata = await openCacheMetadata(files, { logger: silentLogger, clock: systemClock })
  onTestFinished(() => metadata.close())
  return metadata
}

test('after damage to the metadata of the cache only public grants are left, because a revocation may be lost', async () => {
  const root = await temporaryFolder()
  const before = await open(root)
  for (const [name, identity] of [
    ['public', anonymousIdentity],
    ['private', parseIdentity('me')],
    ['damaged', anonymousIdentity],
  ] as const)
    await before.commit(
      repository,
      [setManifest(digestFor(name), { identity }), setTag(name, digestFor(name), { identity })],
      'soon',
    )
  await before.close()
  await damageLog(join(root, 'metadata'), (text) => text.replace('"tag","damaged"', '"tag","damagee"'))
  for (let start = 0; start < 2; start++) {
    const again = await open(root)
    const { tags, manifests } = again.get('docker.io', 'library/app')!
    expect([...tags.keys()]).toEqual(['public'])
    expect([...manifests.keys()]).toEqual([digestFor('public')])
    await again.close()
  }
})
