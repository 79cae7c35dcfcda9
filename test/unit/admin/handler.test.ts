import { expect, test } from 'vitest'
import { createSystemError } from '../../../src/lib/errors.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import type { AdminApi } from '../../../src/admin/api.ts'
import { createAdminHandler } from '../../../src/admin/handler.ts'
import { createHostGuard } from '../../../src/server/request-guard.ts'
import { get } from '../../support/get.ts'
import { serve } from '../../support/upstream/serve.ts'

async function refuse(): Promise<never> {
  throw createSystemError('EROFS', 'unlink', 'EROFS: read-only file system')
}

test.each([
  ['/api/cache/rm', { names: ['app'] }],
  ['/api/cache/prune', {}],
  ['/api/cache/verify', {}],
  ['/api/registry/rm', { names: ['app'] }],
  ['/api/registry/gc', { grace: 0 }],
  ['/api/registry/prune', { olderThan: 0, keep: 0 }],
])('POST %s on a read-only disk is answered with a 507 and the reason', async (path, body) => {
  const api: Pick<AdminApi, 'cache' | 'registry'> = {
    cache: {
      list: refuse,
      checkTag: refuse,
      remove: refuse,
      prune: refuse,
      async *verify() {
        yield await refuse()
      },
    },
    registry: { list: refuse, listDamaged: refuse, remove: refuse, gc: refuse, prune: refuse },
  }
  const guard = createHostGuard([], () => {})
  const handle = createAdminHandler({
    api: api as AdminApi,
    listTroubles: refuse,
    guard,
    token: 't',
    logger: silentLogger,
  })
  const { url } = await serve(handle)
  const headers = { authorization: 'Bearer t', 'content-type': 'application/json' }
  const answer = await get(url, path, { method: 'POST', headers, body: JSON.stringify(body) })
  expect([answer.status, answer.body.toString()]).toEqual([507, expect.stringContaining('is mounted read-only')])
})
